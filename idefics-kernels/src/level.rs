//! Instruction set levels, and the environment variables that select one.

use std::env;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// Environment variable that caps the instruction set.
const CAP: &str = "IDEFICS_ISA";

/// Environment variable that names the level that the CPU must support for the tests to pass.
const REQUIRED: &str = "IDEFICS_REQUIRE_ISA";

/// An instruction set level. Levels are ordered: of two levels that the CPU supports, kernels prefer the later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum IsaLevel {
    /// Portable loops without intrinsics.
    Plain,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX2 with VNNI.
    AvxVnni,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX-512 with VNNI and bf16.
    Avx512Bf16,
    /// AMX with bf16 and int8.
    Amx,
    /// NEON, on 64-bit Arm.
    Neon,
}

impl IsaLevel {
    /// All levels, in ascending order.
    pub const ALL: [Self; 8] = [
        Self::Plain,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
        Self::Amx,
        Self::Neon,
    ];

    /// The name of the level in the environment variables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
            Self::Neon => "neon",
        }
    }

    /// The value of `IDEFICS_ISA`, which caps [`Isa::best`](crate::Isa::best). Read once; `None` if unset or empty.
    ///
    /// A program should report the error at startup, because [`Isa::best`](crate::Isa::best) panics with it.
    ///
    /// # Errors
    /// [`IsaError`] for an unknown level or a level of a different architecture.
    pub fn cap() -> Result<Option<Self>, IsaError> {
        static LEVEL: OnceLock<Result<Option<IsaLevel>, IsaError>> = OnceLock::new();
        LEVEL.get_or_init(|| from_env(CAP)).clone()
    }

    /// The value of `IDEFICS_REQUIRE_ISA`: the level that tests must be able to run. `None` if unset or empty.
    ///
    /// # Errors
    /// [`IsaError`] for an unknown level or a level of a different architecture.
    pub fn required() -> Result<Option<Self>, IsaError> {
        from_env(REQUIRED)
    }

    /// Whether the CPU supports all instructions of this level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => crate::vector::avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => crate::vector::avx512::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => crate::amx::is_available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            _ => false,
        }
    }

    /// Whether this level exists on the architecture that the crate is compiled for.
    fn matches_architecture(self) -> bool {
        match self {
            Self::Plain => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            _ => cfg!(target_arch = "x86_64"),
        }
    }
}

impl fmt::Display for IsaLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for IsaLevel {
    type Err = UnknownIsaLevel;

    fn from_str(name: &str) -> Result<Self, UnknownIsaLevel> {
        let level = Self::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(name));
        level.ok_or_else(|| UnknownIsaLevel { name: name.to_owned() })
    }
}

/// A name that is not an instruction set level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a known instruction set; expected one of {}", names())]
pub struct UnknownIsaLevel {
    /// The unknown name.
    pub name: String,
}

/// An environment variable with an invalid instruction set level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IsaError {
    /// The value is not a known level.
    #[error("{variable}: {source}")]
    Unknown {
        /// Name of the environment variable.
        variable: &'static str,
        /// The unknown value.
        source: UnknownIsaLevel,
    },
    /// The level exists only on another architecture.
    #[error("{variable}: {level} is not an instruction set of this architecture ({})", env::consts::ARCH)]
    OtherArchitecture {
        /// Name of the environment variable.
        variable: &'static str,
        /// The level in the variable.
        level: IsaLevel,
    },
}

fn names() -> String {
    IsaLevel::ALL.map(IsaLevel::name).join(", ")
}

/// Reads a level from an environment variable. An empty variable counts as unset.
fn from_env(variable: &'static str) -> Result<Option<IsaLevel>, IsaError> {
    match env::var_os(variable) {
        Some(value) => parse(variable, value.to_string_lossy().trim()),
        None => Ok(None),
    }
}

fn parse(variable: &'static str, value: &str) -> Result<Option<IsaLevel>, IsaError> {
    if value.is_empty() {
        return Ok(None);
    }
    let level: IsaLevel = value.parse().map_err(|source| IsaError::Unknown { variable, source })?;
    if level.matches_architecture() { Ok(Some(level)) } else { Err(IsaError::OtherArchitecture { variable, level }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_every_level_name() {
        for level in IsaLevel::ALL {
            assert_eq!(level.name().parse(), Ok(level));
            match parse(CAP, &level.name().to_uppercase()) {
                Ok(read) => assert_eq!(read, Some(level)),
                Err(error) => assert_eq!(error, IsaError::OtherArchitecture { variable: CAP, level }),
            }
        }
        assert_eq!(parse(CAP, ""), Ok(None));
        let error = parse(CAP, "avx1024").unwrap_err().to_string();
        assert!(error.starts_with("IDEFICS_ISA: \"avx1024\"") && error.ends_with("amx, neon"), "{error}");
        let other = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
        assert!(matches!(parse(CAP, other), Err(IsaError::OtherArchitecture { .. })));
    }
}
