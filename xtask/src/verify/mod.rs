//! `cargo xtask verify`: runs reference cases through the production code and compares stage by stage.

pub(crate) mod activations;
mod case;
mod compare;
mod decoder;
mod generation;
mod idefics1;
mod margins;
mod report;
mod stages;
mod training;
mod vision;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::tensor::DType;
use idefics_generate::{DeviceChoice, Precision};

use case::Case;
use report::Report;

/// Compares every stage of a model with what the reference computed.
///
/// Prints a row for each stage and marks the first one that differs in each case. Exit code 0 if all stages agree,
/// 1 if one differs, 2 if a case cannot be read.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask verify\n  cargo xtask verify --case target/cases/two-images --json")]
pub(crate) struct Args {
    /// A case folder; may be repeated [default: every case committed in xtask/cases].
    #[arg(long = "case", value_name = "DIR")]
    cases: Vec<PathBuf>,
    /// `auto`, `cpu`, `cuda[:N]`, `vulkan[:N]` or `wgpu[:N]`.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// f32, bf16 or f16; tolerances are for f32, the others are compared relative to the largest value.
    #[arg(long, default_value = "f32")]
    dtype: Precision,
    /// One JSON object a stage, and one with the counts.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    let cases = match args.cases.is_empty() {
        false => Ok(args.cases.clone()),
        true => committed_cases(),
    };
    let verified = cases.and_then(|cases| verify(&cases, args));
    match verified {
        Ok(report) => report.finish(),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn verify(cases: &[PathBuf], args: &Args) -> Result<Report> {
    let (choice, device) = args.device.open()?;
    let dtype = args.dtype.on(choice, &device)?.unwrap_or(DType::F32);
    let mut report = Report::new(args.json);
    for folder in cases {
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        report.begin(&name);
        let compared = Case::read(folder).and_then(|case| stages::compare(&case, &device, dtype, &mut report));
        if let Err(error) = compared {
            report.unreadable(&error);
        }
    }
    Ok(report)
}

/// The cases in the project, or in the folder that `IDEFICS_CASES` names, by name.
fn committed_cases() -> Result<Vec<PathBuf>> {
    let elsewhere = std::env::var_os("IDEFICS_CASES").map(PathBuf::from);
    let folder = elsewhere.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("cases"));
    let entries = std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))?;
    let mut cases = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    cases.retain(|path| path.is_dir());
    cases.sort();
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_committed_case_agrees_with_the_reference() {
        let cases = committed_cases().unwrap();
        assert!(cases.len() >= 20, "{} cases", cases.len());
        let args = Args { cases: Vec::new(), device: DeviceChoice::Cpu, dtype: Precision::F32, json: false };
        let report = verify(&cases, &args).unwrap();
        assert_eq!((report.failed(), report.unreadable_cases()), (0, 0));
        assert!(report.passed() > 100, "{} stages", report.passed());
    }

    #[test]
    fn in_16_bits_only_what_hangs_by_little_goes_another_way() {
        let cases = committed_cases().unwrap();
        for dtype in [Precision::Bf16, Precision::F16] {
            let args = Args { cases: Vec::new(), device: DeviceChoice::Cpu, dtype, json: false };
            let report = verify(&cases, &args).unwrap();
            assert_eq!((report.failed(), report.unreadable_cases()), (0, 0), "{dtype}");
        }
    }

    #[test]
    fn a_case_that_cannot_be_read_is_no_agreement() {
        let folder = tempfile::tempdir().unwrap();
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/text-only");
        let checkpoint = case.join("../../checkpoints/odd-heads").canonicalize().unwrap();
        let text = std::fs::read_to_string(case.join("case.json")).unwrap();
        let text = text.replace("../../checkpoints/odd-heads", checkpoint.to_str().unwrap());
        std::fs::write(folder.path().join("case.json"), text).unwrap();
        let args = Args { cases: Vec::new(), device: DeviceChoice::Cpu, dtype: Precision::F32, json: true };
        let report = verify(&[folder.path().to_owned()], &args).unwrap();
        assert_eq!((report.passed(), report.failed(), report.unreadable_cases()), (0, 0, 1));
    }

    #[test]
    fn a_changed_expectation_is_a_failure() {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/two-images");
        let folder = tempfile::tempdir().unwrap();
        for name in ["case.json", "expected.safetensors"] {
            std::fs::copy(case.join(name), folder.path().join(name)).unwrap();
        }
        std::fs::create_dir(folder.path().join("images")).unwrap();
        for image in std::fs::read_dir(case.join("images")).unwrap() {
            let image = image.unwrap().path();
            std::fs::copy(&image, folder.path().join("images").join(image.file_name().unwrap())).unwrap();
        }
        let text = std::fs::read_to_string(folder.path().join("case.json")).unwrap();
        let checkpoint = case.join("../../checkpoints/odd-heads").canonicalize().unwrap();
        let text = text.replace("../../checkpoints/odd-heads", checkpoint.to_str().unwrap());
        std::fs::write(folder.path().join("case.json"), text.replace("0.0001", "1e-12")).unwrap();

        let args = Args { cases: Vec::new(), device: DeviceChoice::Cpu, dtype: Precision::F32, json: false };
        let report = verify(&[folder.path().to_owned()], &args).unwrap();
        assert!(report.failed() > 0 && report.passed() > 0);
    }
}
