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

use anyhow::{Result, anyhow};
use burn::tensor::DType;
use idefics_generate::processor::describe_io_error;
use idefics_generate::{DeviceChoice, Precision};

use case::Case;
use report::Report;

/// Compare every stage of a model with the results of the reference.
///
/// Prints one row per stage and marks the first one that differs in each case. Exit code 0 if all stages agree, 1 if
/// a stage differs, 2 if a case cannot be read.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask verify\n  cargo xtask verify --case xtask/cases/two-images --json")]
pub(crate) struct Args {
    /// A case folder; may be repeated [default: every case committed in xtask/cases].
    #[arg(long = "case", value_name = "DIR")]
    cases: Vec<PathBuf>,
    /// Device to compute on: `auto`, `cpu`, `cuda[:N]`, `vulkan[:N]` or `wgpu[:N]`.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Dtype of the weights: f32, bf16 or f16. The tolerances of a case apply to f32. Those of bf16 and f16 are
    /// relative to the largest value of a stage.
    #[arg(long, default_value = "f32")]
    dtype: Precision,
    /// Print one JSON object per stage, and a last one with the counts.
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
    let dtype = args.dtype.dtype_on(choice, &device)?.unwrap_or(DType::F32);
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

/// Returns the case folders in `xtask/cases`, or in the folder named by `IDEFICS_CASES`, sorted by name.
fn committed_cases() -> Result<Vec<PathBuf>> {
    let elsewhere = std::env::var_os("IDEFICS_CASES").map(PathBuf::from);
    let folder = elsewhere.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("cases"));
    let entries = std::fs::read_dir(&folder);
    let entries = entries.map_err(|error| anyhow!("{}: {}", folder.display(), describe_io_error(&error)))?;
    let mut cases = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    cases.retain(|path| path.is_dir());
    cases.sort();
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_cases_match_reference_in_f32() {
        let cases = committed_cases().unwrap();
        assert!(cases.len() >= 20, "{} cases", cases.len());
        let args = Args { cases: Vec::new(), device: DeviceChoice::Cpu, dtype: Precision::F32, json: false };
        let report = verify(&cases, &args).unwrap();
        assert_eq!((report.failed(), report.unreadable_cases()), (0, 0));
        assert!(report.passed() > 100, "{} stages", report.passed());
    }

    #[test]
    fn committed_cases_match_reference_in_16_bits_up_to_ties() {
        let cases = committed_cases().unwrap();
        for dtype in [Precision::Bf16, Precision::F16] {
            let args = Args { cases: Vec::new(), device: DeviceChoice::Cpu, dtype, json: false };
            let report = verify(&cases, &args).unwrap();
            assert_eq!((report.failed(), report.unreadable_cases()), (0, 0), "{dtype}");
        }
    }

    #[test]
    fn unreadable_case_is_counted_as_unreadable() {
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
    fn exceeding_the_tolerance_is_a_failure() {
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
