//! Prints the results of `verify`.

use std::process::ExitCode;

use serde_json::json;

use super::compare::Comparison;

/// Prints stages as they are compared and counts them.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    case: String,
    /// Whether a stage of the current case has differed.
    case_differs: bool,
    passed: usize,
    failed: usize,
    unreadable: usize,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { json, case: String::new(), case_differs: false, passed: 0, failed: 0, unreadable: 0 }
    }

    #[cfg(test)]
    pub(super) fn passed(&self) -> usize {
        self.passed
    }

    #[cfg(test)]
    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    #[cfg(test)]
    pub(super) fn unreadable_cases(&self) -> usize {
        self.unreadable
    }

    /// Starts a case.
    pub(super) fn begin(&mut self, case: &str) {
        case.clone_into(&mut self.case);
        self.case_differs = false;
        if !self.json {
            println!("{case}");
            println!(
                "  {:<32} {:<24} {:>10} {:>10} {:>10}  verdict",
                "stage", "shape", "max |Δ|", "mean |Δ|", "tolerance"
            );
        }
    }

    /// Prints a stage.
    pub(super) fn stage(&mut self, stage: &str, comparison: &Comparison) {
        let passed = comparison.passed();
        let first = !passed && !self.case_differs;
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.case_differs = true;
        }
        let Comparison { shape, max, mean, tolerance, remark, note } = comparison;
        if self.json {
            let row = json!({
                "case": self.case, "stage": stage, "shape": shape, "max": max, "mean": mean, "tolerance": tolerance,
                "passed": passed, "first_difference": first, "remark": remark, "note": note,
            });
            println!("{row}");
            return;
        }
        let verdict = match (passed, first) {
            (true, _) => "ok",
            (false, true) => "DIFFERS  <- first difference",
            (false, false) => "DIFFERS",
        };
        let shape = format!("{shape:?}");
        println!("  {stage:<32} {shape:<24} {max:>10.2e} {mean:>10.2e} {tolerance:>10.0e}  {verdict}");
        for text in remark.iter().chain(note) {
            println!("  {:<32} {text}", "");
        }
    }

    /// Reports that the current case cannot be read.
    pub(super) fn unreadable(&mut self, error: &anyhow::Error) {
        self.unreadable += 1;
        eprintln!("error: {}: {error:#}", self.case);
    }

    /// Prints the counts. The exit code is 0 if all stages agreed, 1 if a stage differed, 2 if a case could not be
    /// read.
    pub(super) fn finish(&self) -> ExitCode {
        if self.json {
            println!("{}", json!({"passed": self.passed, "failed": self.failed, "unreadable": self.unreadable}));
        } else {
            println!("{} passed, {} failed", self.passed, self.failed);
        }
        match (self.unreadable, self.failed) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(1),
            (_, _) => ExitCode::from(2),
        }
    }
}
