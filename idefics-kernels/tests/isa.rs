//! The environment variables that choose an instruction set. Each case runs in its own process.

use std::env;
use std::process::Command;

use idefics_kernels::{Isa, IsaLevel};

use crate::common::isas;

/// Prints which instruction set the environment of this process selects. The tests below run it in a child process.
#[test]
fn choice_of_this_process() {
    println!("cap {:?}", IsaLevel::cap());
    println!("best {:?}", Isa::best());
    isas();
}

/// Runs [`choice_of_this_process`] in a child process with a variable set. Returns the output of the child process, and
/// whether it succeeded.
fn choice(variable: &str, value: &str) -> (String, bool) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "isa::choice_of_this_process", "--nocapture"]);
    command.env_remove("IDEFICS_ISA").env_remove("IDEFICS_REQUIRE_ISA").env(variable, value);
    let output = command.output().unwrap();
    (String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(), output.status.success())
}

#[test]
fn idefics_isa_caps_the_instruction_set() {
    for isa in Isa::available() {
        let (choice, is_passed) = choice("IDEFICS_ISA", isa.level().name());
        let expected = format!("cap Ok(Some({:?}))\nbest {isa:?}", isa.level());
        assert!(is_passed && choice.contains(&expected), "{choice}");
    }
    let (unset, _) = choice("IDEFICS_ISA", "");
    let best = Isa::available().pop().unwrap();
    assert!(unset.contains(&format!("cap Ok(None)\nbest {best:?}")), "{unset}");
    let (unknown, is_passed) = choice("IDEFICS_ISA", "sse9");
    assert!(unknown.contains("cap Err(Unknown") && !unknown.contains("\nbest "), "{unknown}");
    assert!(!is_passed && unknown.contains("IDEFICS_ISA: \"sse9\" is not a known instruction set"), "{unknown}");
}

#[test]
fn tests_fail_if_the_required_level_is_missing() {
    for level in IsaLevel::ALL {
        assert_eq!(choice("IDEFICS_REQUIRE_ISA", level.name()).1, level.is_available(), "{level}");
    }
    assert!(!choice("IDEFICS_REQUIRE_ISA", "sse9").1);
}
