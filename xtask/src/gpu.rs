//! `cargo xtask gpu`: tests and measures a GPU, and writes a report.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use idefics_generate::DeviceChoice;
use serde_json::Value;

/// Build the programs for a GPU, verify every committed case in each dtype of the device, measure the shapes of large
/// models, run the benches, and write a report.
///
/// Exit code 0 if everything ran and every case agrees in f32, 1 otherwise.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask gpu --device cuda
  cargo xtask gpu --device vulkan --small --output report.md
  cargo xtask gpu --device cuda --only cases
  xtask gpu --device cuda --programs DIR        # on a machine without a compiler")]
pub(crate) struct Args {
    /// The GPU: `cuda[:N]`, `vulkan[:N]` or `wgpu[:N]`.
    #[arg(long, default_value = "cuda")]
    device: DeviceChoice,
    /// Use the programs `idefics` and `xtask` from this folder instead of building them. Skips the benches.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Use the built-in model instead of Idefics2-8b and skip the benches, to try out the command.
    #[arg(long)]
    small: bool,
    /// Run only this part.
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
    /// File to write the report to [default: benches/results/DATE-CARD.md].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A part of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Verification of every committed case in each dtype.
    Cases,
    /// `idefics bench` for several shapes.
    Shapes,
    /// The criterion benches of the components, on the first device of this kind.
    Benches,
}

/// The measurements with random weights in the shape of Idefics2-8b: name, options before `bench`, options after
/// `bench`.
const LARGE: [(&str, &[&str], &[&str]); 8] = [
    ("one row, bf16", &["--dtype", "bf16"], &["--new-tokens", "64"]),
    ("one row, int8", &["--quantize", "int8"], &["--new-tokens", "64"]),
    ("one row, nf4", &["--quantize", "nf4"], &["--new-tokens", "64"]),
    ("one row, q4", &["--quantize", "q4"], &["--new-tokens", "64"]),
    ("16 rows, bf16", &["--dtype", "bf16"], &["--batch", "16", "--new-tokens", "64"]),
    ("1000 tokens, bf16", &["--dtype", "bf16"], &["--prompt-tokens", "1000", "--new-tokens", "8"]),
    ("one 980x980 image, bf16", &["--dtype", "bf16"], &["--image", "980x980", "--new-tokens", "8"]),
    ("five 980x980 images, bf16", &["--dtype", "bf16"], &FIVE_PICTURES),
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

/// The report as written so far. It is saved after every addition, so that an interrupted run keeps its measurements.
struct Report {
    file: PathBuf,
    text: String,
}

impl Report {
    /// Appends to the report and writes the whole file.
    fn add(&mut self, text: &str) -> Result<()> {
        self.text += text;
        std::fs::write(&self.file, &self.text).with_context(|| self.file.display().to_string())
    }
}

/// Writes the report. Returns whether every case agrees in f32 and every shape ran.
fn report(args: &Args) -> Result<bool> {
    let feature = match args.device {
        DeviceChoice::Cuda(_) => "cuda",
        DeviceChoice::Vulkan(_) => "vulkan",
        DeviceChoice::Wgpu(_) => "wgpu",
        _ => bail!("--device {}: expected cuda, vulkan or wgpu", args.device),
    };
    let wants = |part| args.only.is_none_or(|only| only == part);
    let has_benches = args.programs.is_none() && !args.small;
    ensure!(args.only != Some(Part::Benches) || has_benches, "--only benches excludes --programs and --small");
    let programs = match &args.programs {
        Some(folder) => folder.clone(),
        None => build(feature)?,
    };
    let device = args.device.to_string();
    let listed = output(Command::new(programs.join("idefics")).args(["--json", "devices"]))?;
    let devices = listed.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let card = devices.iter().find(|listed| listed["device"] == device.as_str());
    let card = card.with_context(|| format!("this machine has no device {device}; its devices are:\n{listed}"))?;
    let name = card["name"].as_str().unwrap_or("unknown");

    let today = today()?;
    let file_name = name.to_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/results");
    let file = args.output.clone().unwrap_or_else(|| folder.join(format!("{today}-{file_name}.md")));
    let mut report = Report { file, text: String::new() };
    report.add(&format!("# {name}, {today}\n\n`cargo xtask gpu --device {device}`. {card}\n\n"))?;
    let agrees = !wants(Part::Cases) || verify(&programs, &device, card, &mut report)?;
    let ran = !wants(Part::Shapes) || measure(&programs, &device, args.small, &mut report)?;
    if wants(Part::Benches) && has_benches {
        let features = format!("idefics-nn/{feature}");
        let packages = ["idefics-nn", "idefics-vision", "idefics-perceiver", "idefics-text"];
        let mut bench = Command::new("cargo");
        bench.args(["bench", "--benches", "--features", &features]).env("BURN_DEVICE", feature); // uses the first GPU
        packages.iter().for_each(|package| _ = bench.args(["-p", package]));
        report.add(&format!("## Benches\n\n```\n{}```\n", output(&mut bench)?))?;
    }
    println!("{}", report.file.display());
    Ok(agrees && ran)
}

/// Builds the programs and returns their folder.
fn build(feature: &str) -> Result<PathBuf> {
    let features = format!("idefics-cli/{feature},xtask/{feature}");
    let options = ["build", "--release", "-p", "idefics-cli", "-p", "xtask", "--features", &features];
    let status = Command::new("cargo").args(options).status().context("cargo")?;
    ensure!(status.success(), "cargo {}: {status}", options.join(" "));
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    Ok(target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")).join("release"))
}

/// Verifies every committed case in each dtype of the device. Returns whether all agree in f32.
fn verify(programs: &Path, device: &str, card: &Value, report: &mut Report) -> Result<bool> {
    report.add("## Cases\n\n| dtype | stages that agree | stages that differ | seconds |\n|---|---|---|---|\n")?;
    let mut agrees = false;
    for dtype in card["dtypes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("verify, {dtype}");
        let clock = Instant::now();
        // Exit code 1 means that stages differ. The report then continues with the next dtype.
        let verify = ["verify", "--json", "--device", device, "--dtype", dtype];
        let run = Command::new(programs.join("xtask")).args(verify).stderr(Stdio::inherit()).output()?;
        let lines = String::from_utf8(run.stdout)?;
        let counts: Value = serde_json::from_str(lines.lines().last().context("verify printed nothing")?)?;
        let [passed, failed] = ["passed", "failed"].map(|key| counts[key].as_u64().unwrap_or(u64::MAX));
        report.add(&format!("| {dtype} | {passed} | {failed} | {:.0} |\n", clock.elapsed().as_secs_f64()))?;
        agrees |= dtype == "f32" && run.status.success();
    }
    report.add("\n")?;
    Ok(agrees)
}

/// Runs `idefics bench` for every shape. Returns whether all succeeded.
fn measure(programs: &Path, device: &str, small: bool, report: &mut Report) -> Result<bool> {
    report.add(
        "## Shapes\n\nTimes are minimum / median in milliseconds per run or per decode step. Each shape is run once as \
         a warm-up, which also chooses kernels. If the device can capture a decode step, the captured step is \
         replayed; `launches` is the fraction of the step time that this saves. `share` is the fraction of the \
         measured read bandwidth (`read GB/s`) that decoding reaches. `launch µs` is the time of one kernel launch, \
         `all s` the duration of the whole run.\n\n\
         | shape | vision | connector | prefill | decode | launches | read GB/s | share | launch µs | memory GB | all s |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    )?;
    let small_shapes: [(&str, &[&str], &[&str]); 2] = [
        ("the built-in model, f32", &["--dtype", "f32"], &["--image", "64x64", "--new-tokens", "4", "--runs", "1"]),
        ("the built-in model, q4", &["--quantize", "q4"], &["--new-tokens", "4", "--runs", "1"]),
    ];
    let shapes = if small { &small_shapes[..] } else { &LARGE[..] };
    let mut all_ran = true;
    for (name, before, after) in shapes {
        eprintln!("bench, {name}");
        let mut command = Command::new(programs.join("idefics"));
        command.args(["--json", "--device", device]).args(*before).arg("bench");
        if !small {
            command.args(["--random-weights", "idefics2-8b"]);
        }
        let clock = Instant::now();
        let ran = output(command.args(*after)).and_then(|line| Ok(serde_json::from_str(line.trim())?));
        let row = match &ran {
            Ok(bench) => figures(bench),
            Err(error) => format!(" failed: {error:#} | | | | | | | | |"),
        };
        all_ran &= ran.is_ok();
        report.add(&format!("| {name} |{row} {:.0} |\n", clock.elapsed().as_secs_f64()))?;
    }
    report.add("\n")?;
    Ok(all_ran)
}

/// Formats the result of one `idefics bench` run as table cells.
fn figures(bench: &Value) -> String {
    let number = |key: &str| bench[key].as_f64().unwrap_or(f64::NAN);
    let stage = |stage: &str| {
        let [min, median] = ["min", "median"].map(|key| bench[stage][key].as_f64().unwrap_or(f64::NAN));
        format!(" {min:.2} / {median:.2} |")
    };
    let stages = ["vision_ms", "connector_ms", "prefill_ms", "decode_ms_per_token"].map(stage).concat();
    let (bandwidth, share) = (number("memory_bandwidth_gb_s"), number("decode_bandwidth_fraction"));
    let fastest = |key: &str| bench[key]["min"].as_f64();
    let launches = match (fastest("decode_launched_ms_per_token"), fastest("decode_ms_per_token")) {
        (Some(launched), Some(replayed)) => format!("{:.0} %", 100.0 * (1.0 - replayed / launched)),
        _ => bench["replay_refusal"].as_str().unwrap_or("–").to_owned(),
    };
    let (launch, memory) = (number("launch_us"), number("device_bytes_reserved") / 1e9);
    format!("{stages} {launches} | {bandwidth:.0} | {share:.2} | {launch:.1} | {memory:.2} |")
}

/// Runs a command and returns its standard output. Fails if the exit code is not 0.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Returns today's date, such as `2026-11-21`.
fn today() -> Result<String> {
    Ok(output(Command::new("date").arg("+%F"))?.trim().to_owned())
}
