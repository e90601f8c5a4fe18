//! Reads the environment variable `IDEFICS_ISA`, which limits the instruction sets that vector loops may use.
//! `idefics-kernels` reads the same variable, but this crate does not depend on that crate.

use std::env;
use std::sync::OnceLock;

/// Name of the environment variable.
const CAP: &str = "IDEFICS_ISA";

/// Values of the variable, in ascending order.
const LEVELS: [&str; 7] = ["plain", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx"];

/// An instruction set that vector loops of this crate are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// AVX2 with BMI1 and BMI2, which were introduced with it.
    Avx2,
    /// AVX-512 with VNNI.
    Avx512Vnni,
}

impl Isa {
    /// Returns whether `IDEFICS_ISA` allows this instruction set. The variable is read once. This function does not
    /// check whether the CPU supports the instructions.
    ///
    /// # Panics
    /// If the value of the variable is not a level of this architecture.
    pub(crate) fn is_allowed(self) -> bool {
        static HIGHEST: OnceLock<usize> = OnceLock::new();
        let highest = HIGHEST.get_or_init(|| {
            let value = env::var_os(CAP).unwrap_or_default();
            highest(value.to_string_lossy().trim()).unwrap_or_else(|error| panic!("{error}"))
        });
        self.is_within(*highest)
    }

    fn is_within(self, highest: usize) -> bool {
        let level = match self {
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512vnni",
        };
        LEVELS[..=highest].contains(&level)
    }
}

/// Returns the index of the highest level that a value of the variable allows. An empty value allows all levels.
fn highest(value: &str) -> Result<usize, String> {
    if value.is_empty() {
        return Ok(LEVELS.len() - 1);
    }
    LEVELS.iter().position(|level| level.eq_ignore_ascii_case(value)).ok_or_else(|| {
        format!(
            "{CAP}: {value:?} is not an instruction set of this architecture ({}); expected one of {}",
            env::consts::ARCH,
            LEVELS.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn each_level_allows_itself_and_lower_levels() {
        let allowed = |value| [Isa::Avx2, Isa::Avx512Vnni].map(|isa| isa.is_within(highest(value).unwrap()));
        assert_eq!(allowed("plain"), [false, false]);
        assert_eq!(allowed("AVX2"), [true, false]);
        assert_eq!(allowed("avx512"), [true, false]);
        assert_eq!(allowed("amx"), [true, true]);
        assert_eq!(allowed(""), [true, true]);
        let error = highest("neon").unwrap_err();
        assert!(error.starts_with("IDEFICS_ISA: \"neon\" is not") && error.ends_with("avx512bf16, amx"), "{error}");
    }

    /// Prints which instruction sets the environment of this process allows. The test below runs this test in a child
    /// process.
    #[test]
    fn choice_of_this_process() {
        println!("allowed {:?}", [Isa::Avx2, Isa::Avx512Vnni].map(Isa::is_allowed));
    }

    #[test]
    fn environment_variable_is_read() {
        let choice = |value: &str| {
            let mut command = Command::new(env::current_exe().unwrap());
            let command = command.args(["--exact", "isa::tests::choice_of_this_process", "--nocapture"]);
            let output = command.env(CAP, value).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
        };
        for (value, allowed) in [("plain", "[false, false]"), ("avx2", "[true, false]"), ("", "[true, true]")] {
            let (is_passed, text) = choice(value);
            assert!(is_passed && text.contains(&format!("allowed {allowed}")), "{value}: {text}");
        }
        let (is_passed, text) = choice("sse9");
        assert!(!is_passed && text.contains("IDEFICS_ISA: \"sse9\" is not an instruction set"), "{text}");
    }
}
