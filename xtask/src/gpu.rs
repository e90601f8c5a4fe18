//! `cargo xtask gpu`: what is to be seen on a card, in one report.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use idefics_generate::DeviceChoice;
use serde_json::Value;

/// Builds the programs for a GPU, compares every committed case in each dtype of the device, runs the benches, measures
/// the large shapes, and writes a report.
///
/// Exit code 0 if all was run and every case agrees in f32, 1 otherwise.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask gpu --device cuda
  cargo xtask gpu --device vulkan --small --output report.md
  cargo xtask gpu --device cuda --only cases
  xtask gpu --device cuda --programs DIR        # where there is no compiler")]
pub(crate) struct Args {
    /// `cuda[:N]`, `vulkan[:N]` or `wgpu[:N]`.
    #[arg(long, default_value = "cuda")]
    device: DeviceChoice,
    /// A folder with `idefics` and `xtask`, instead of building them; benches are left out then.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// The built-in model instead of Idefics2-8b, and no benches: to try the command.
    #[arg(long)]
    small: bool,
    /// Only this part, where a card is lent for minutes.
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
    /// Where the report goes [default: benches/results/DATE-CARD.md].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A part of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Every committed case in each dtype.
    Cases,
    /// `idefics bench` of the shapes.
    Shapes,
    /// The criterion benches of the components.
    Benches,
}

/// What is measured with random weights of the shape of Idefics2-8b: a name, and options before and behind `bench`.
const LARGE: [(&str, &[&str], &[&str]); 8] = [
    ("one row, bf16", &["--dtype", "bf16"], &["--new-tokens", "64"]),
    ("one row, int8", &["--quantize", "int8"], &["--new-tokens", "64"]),
    ("one row, nf4", &["--quantize", "nf4"], &["--new-tokens", "64"]),
    ("one row, q4", &["--quantize", "q4"], &["--new-tokens", "64"]),
    ("16 rows, bf16", &["--dtype", "bf16"], &["--batch", "16", "--new-tokens", "64"]),
    ("1000 tokens, bf16", &["--dtype", "bf16"], &["--prompt-tokens", "1000", "--new-tokens", "8"]),
    ("a picture of 980x980, bf16", &["--dtype", "bf16"], &["--image", "980x980", "--new-tokens", "8"]),
    ("five of them, bf16", &["--dtype", "bf16"], &FIVE_PICTURES),
];
const FIVE_PICTURES: [&str; 14] = [
    "--image",
    "980x980",
    "--image",
    "980x980",
    "--image",
    "980x980",
    "--image",
    "980x980",
    "--image",
    "980x980",
    "--prompt-tokens",
    "400",
    "--new-tokens",
    "8",
];

/// Runs the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    match report(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the report; whether every case agrees in f32.
fn report(args: &Args) -> Result<bool> {
    let feature = match args.device {
        DeviceChoice::Vulkan(_) => "vulkan",
        DeviceChoice::Wgpu(_) => "wgpu",
        _ => "cuda",
    };
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => build(feature)?,
    };
    let device = args.device.to_string();
    let listed = output(Command::new(programs.join("idefics")).args(["--json", "devices"]))?;
    let devices = listed.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let card = devices.iter().find(|listed| listed["device"] == device.as_str());
    let card = card.with_context(|| format!("{device} is not among the devices of this machine:\n{listed}"))?;
    let name = card["name"].as_str().unwrap_or("unknown");

    let mut text = format!("# {name}, {}\n\n`cargo xtask gpu --device {device}`. {card}\n\n", today()?);
    let wants = |part| args.only.is_none_or(|only| only == part);
    let agrees = !wants(Part::Cases) || verify(&programs, &device, card, &mut text)?;
    if wants(Part::Shapes) {
        measure(&programs, &device, args.small, &mut text)?;
    }
    if wants(Part::Benches) && args.programs.is_none() && !args.small {
        text += "## Benches\n\n```\n";
        for package in ["idefics-nn", "idefics-vision", "idefics-perceiver", "idefics-text"] {
            let features = format!("idefics-nn/{feature}");
            let bench = ["bench", "-p", package, "-p", "idefics-nn", "--features", &features, "--benches"];
            text += &output(Command::new("cargo").args(bench).env("BURN_DEVICE", feature))?;
        }
        text += "```\n";
    }
    let card = name.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let file = args.output.clone().unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("../benches/results/{}-{card}.md", today().unwrap_or_default()))
    });
    std::fs::write(&file, text).with_context(|| file.display().to_string())?;
    println!("{}", file.display());
    Ok(agrees)
}

/// Builds the programs, and says where they are.
fn build(feature: &str) -> Result<PathBuf> {
    let features = format!("idefics-cli/{feature},xtask/{feature}");
    let options = ["build", "--release", "-p", "idefics-cli", "-p", "xtask", "--features", &features];
    let status = Command::new("cargo").args(options).status().context("cargo")?;
    ensure!(status.success(), "cargo {}: {status}", options.join(" "));
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    Ok(target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")).join("release"))
}

/// Every committed case in each dtype of the device.
fn verify(programs: &Path, device: &str, card: &Value, text: &mut String) -> Result<bool> {
    *text += "## Cases\n\n| dtype | stages that agree | that do not | seconds |\n|---|---|---|---|\n";
    let mut agrees = false;
    for dtype in card["dtypes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("verify, {dtype}");
        let clock = Instant::now();
        // Stages that differ make its exit code 1, which is no reason to stop.
        let verify = ["verify", "--json", "--device", device, "--dtype", dtype];
        let run = Command::new(programs.join("xtask")).args(verify).stderr(Stdio::inherit()).output()?;
        let lines = String::from_utf8(run.stdout)?;
        let counts: Value = serde_json::from_str(lines.lines().last().context("verify printed nothing")?)?;
        let [passed, failed] = ["passed", "failed"].map(|key| counts[key].as_u64().unwrap_or(u64::MAX));
        writeln!(text, "| {dtype} | {passed} | {failed} | {:.0} |", clock.elapsed().as_secs_f64())?;
        agrees |= dtype == "f32" && run.status.success();
    }
    *text += "\n";
    Ok(agrees)
}

/// `idefics bench` of every shape.
fn measure(programs: &Path, device: &str, small: bool, text: &mut String) -> Result<()> {
    *text += "## Shapes\n\nThe fastest / the median run or step, in milliseconds; the share is that of the read bandwidth \
              measured in the same run. Each shape is run once before it counts, which chooses kernels.\n\n\
              | shape | vision | connector | prefill | decode | read GB/s | share | launch µs | memory GB | all s |\n\
              |---|---|---|---|---|---|---|---|---|---|\n";
    let small_shapes: [(&str, &[&str], &[&str]); 2] = [
        ("the built-in model, f32", &["--dtype", "f32"], &["--image", "64x64", "--new-tokens", "4", "--runs", "1"]),
        ("the built-in model, q4", &["--quantize", "q4"], &["--new-tokens", "4", "--runs", "1"]),
    ];
    let shapes = if small { &small_shapes[..] } else { &LARGE[..] };
    for (name, before, behind) in shapes {
        eprintln!("bench, {name}");
        let mut command = Command::new(programs.join("idefics"));
        command.args(["--json", "--device", device]).args(*before).arg("bench");
        if !small {
            command.args(["--random-weights", "idefics2-8b"]);
        }
        let clock = Instant::now();
        let bench: Value = serde_json::from_str(output(command.args(*behind))?.trim())?;
        let number = |key: &str| bench[key].as_f64().unwrap_or(f64::NAN);
        write!(text, "| {name} |")?;
        for stage in ["vision_ms", "connector_ms", "prefill_ms", "decode_ms_per_token"] {
            let [min, median] = ["min", "median"].map(|key| bench[stage][key].as_f64().unwrap_or(f64::NAN));
            write!(text, " {min:.2} / {median:.2} |")?;
        }
        let (bandwidth, share) = (number("memory_bandwidth_gb_s"), number("decode_bandwidth_fraction"));
        let (launch, memory) = (number("launch_us"), number("device_bytes_reserved") / 1e9);
        writeln!(
            text,
            " {bandwidth:.0} | {share:.2} | {launch:.1} | {memory:.2} | {:.0} |",
            clock.elapsed().as_secs_f64()
        )?;
    }
    *text += "\n";
    Ok(())
}

/// What a command prints, if it succeeds.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// `2026-11-21`
fn today() -> Result<String> {
    Ok(output(Command::new("date").arg("+%F"))?.trim().to_owned())
}
