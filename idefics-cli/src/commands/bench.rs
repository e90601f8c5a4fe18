//! `idefics bench`

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use idefics_checkpoint::Checkpoint;
use idefics_generate::bench::{
    BenchOptions, BenchProcessors, BenchReport, BenchVideo, ClientsReport, Spread, StageProfile,
};
use idefics_generate::inspect::can_capture_steps;
use idefics_generate::nn::profile::Operation;
use idefics_generate::processor::video::VideoError;
use idefics_generate::{
    Device, Error, ModelConfig, PublicModel, VisionBatch, load_model, load_processor, measure_device,
};
use idefics_kernels::ComputeUnit;
use serde_json::{Value, json};

use crate::args::{BenchArgs, Global, ImageSize, VideoSize};
use crate::failure::Failure;
use crate::machine::{available_memory_bytes, memory_bandwidth_gb_s, peak_rss_bytes, usable_memory_bytes};
use crate::model::{self, ModelFolder};

/// Measures each stage of generating an answer.
pub(crate) fn run(global: &Global, args: &BenchArgs) -> Result<(), Failure> {
    let source = match &args.random_weights {
        None => Some(model::folder(global)?),
        Some(_) => None,
    };
    let mut config = match (&args.random_weights, &source) {
        (Some(shape), _) => shape_of(shape)?,
        (None, Some(folder)) => ModelConfig::from_folder(folder.path())?,
        (None, None) => unreachable!("without `--random-weights` there is a model folder"),
    };
    if let Some(layers) = args.text_layers {
        config = config.with_text_layers(layers.get());
    }
    let processors = processors(source.as_ref().map(ModelFolder::path), &config)?;
    if !args.videos.is_empty() && !processors.reads_videos() {
        let error = VideoError::NotSupported { family: config.family().model_type() };
        return Err(Failure::usage(format!("--video: {error}")));
    }
    let video = |video: &VideoSize| {
        let VideoSize { frame: ImageSize { width, height }, frames } = *video;
        BenchVideo { width, height, frames }
    };
    let mut options = BenchOptions {
        images: args.images.iter().map(|size| (size.width, size.height)).collect(),
        videos: args.videos.iter().map(video).collect(),
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens.get(),
        batch: args.batch.get(),
        runs: args.runs.get(),
        profile: args.profile,
        graph_capture: global.lease.as_ref(),
        vision_batch: VisionBatch::default(), // set below, once the weights are loaded
    };

    let open = |source: &ModelFolder| Checkpoint::open_with(source.path(), global.pickles());
    let checkpoint = source.as_ref().map(open).transpose().map_err(Error::from)?;
    let needed = |device: &Device, weights| config.memory(checkpoint.as_ref(), device, weights);
    let rows = args.clients.iter().map(|clients| clients.get()).fold(options.batch, usize::max);
    let cache = BenchOptions { batch: rows, ..options.clone() }.cache_bytes(&config, processors.n_tiles(&options));
    let (choice, device, weights) = model::device_for(global, cache, needed)?;
    let available = usable_memory_bytes(choice, &device);
    // Two KV caches exist while a decode step is captured.
    let cache = if options.graph_capture.is_some() && can_capture_steps(&config.family().shape().text, &device) {
        2 * cache
    } else {
        cache
    };
    model::check_memory(choice, |weights| needed(&device, weights), weights, Some(cache), available)?;
    model::check_activations(global, choice, &config, checkpoint.as_ref())?;
    drop(checkpoint);

    let bar = model::byte_bar();
    bar.set_message("weights");
    let progress = |loaded: idefics_generate::nn::checkpoint::LoadProgress| {
        bar.set_length(loaded.bytes_total);
        bar.set_position(loaded.bytes_done);
    };
    let clock = Instant::now();
    let model = match &source {
        None => config.random_model(&device, weights, global.seed, progress)?,
        Some(folder) => load_model(folder.path(), &device, weights, progress)?,
    };
    let load_s = clock.elapsed().as_secs_f64();
    bar.finish_and_clear();
    options.vision_batch = global.vision_batch(available_memory_bytes(choice, &device));
    let report = config.bench(&*model, &processors, &options, |stage| {
        if global.verbose {
            say!("{stage}");
        }
    })?;
    let clients: Vec<usize> = args.clients.iter().map(|clients| clients.get()).collect();
    let clients = config.bench_clients(&*model, &processors, &options, &clients, |clients| {
        if global.verbose {
            say!("{clients} clients");
        }
    })?;
    let (rss, reserved) = (peak_rss_bytes(), device.memory_pool_usage().map(|usage| usage.bytes_reserved));
    let (weight_bytes, mut params) = (model.weight_bytes(), 0);
    model.parameter_shapes(&mut |_, shape| params += shape.num_elements());
    drop(model);

    let rates = measure_device(&device);
    let bandwidth = rates.map_or_else(memory_bandwidth_gb_s, |rates| rates.read_gb_s);
    let limits = Limits::measure(&report.profile, bandwidth);
    // The fastest step is compared with the fastest pass over memory, which excludes disturbances by other processes.
    let decode_gb_s = report.decode_bytes_per_token as f64 / report.decode_ms_per_token.min / 1e6;
    let mut object = serde_json::to_value(&report).map_err(io::Error::from)?;
    let more = json!({
        "device": choice.to_string(),
        "quantize": global.quantize.to_string(),
        "threads": rayon::current_num_threads(),
        "params": params,
        "weight_bytes": weight_bytes,
        "load_s": load_s,
        "memory_bandwidth_gb_s": bandwidth,
        "decode_bandwidth_fraction": decode_gb_s / bandwidth,
        "peak_rss_bytes": rss,
        "launch_us": rates.map(|rates| rates.launch_us),
        "device_bytes_reserved": reserved,
    });
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    if !clients.is_empty() {
        object["clients"] = serde_json::to_value(&clients).map_err(io::Error::from)?;
    }
    if global.json && args.profile {
        let peaks = limits.units.iter().map(|(unit, peak)| (unit.to_string(), Value::from(*peak)));
        object["limits_ops_per_s"] = peaks.collect::<serde_json::Map<_, _>>().into();
    }
    for (stage, stage_profile) in report.profile.iter().enumerate() {
        for (index, operation) in stage_profile.operations.iter().enumerate() {
            object["profile"][stage]["operations"][index]["share_of_limit"] = limits.share(operation).into();
        }
    }
    let mut stdout = io::stdout().lock();
    if global.json {
        writeln!(stdout, "{object}")?;
        return Ok(());
    }
    print_table(&mut stdout, &report, &object)?;
    print_clients(&mut stdout, &clients)?;
    print_profile(&mut stdout, &report.profile, &limits)
}

/// Prints a table with one line per stage.
fn print_table(stdout: &mut impl Write, report: &BenchReport, all: &Value) -> Result<(), Failure> {
    let line = |stdout: &mut dyn Write, name: &str, spread: &Spread, unit: &str| {
        let Spread { min, median, max } = spread;
        writeln!(stdout, "{name:<16} {min:>10.1} {median:>10.1} {max:>10.1} {unit}")
    };
    writeln!(stdout, "{:<16} {:>10} {:>10} {:>10}", "", "min", "median", "max")?;
    line(stdout, "preprocess", &report.preprocess_ms, "ms")?;
    line(stdout, "vision tower", &report.vision_ms, &format!("ms, {} tiles", report.tiles))?;
    line(stdout, "connector", &report.connector_ms, "ms")?;
    line(stdout, "prefill", &report.prefill_ms, "ms")?;
    line(stdout, "", &report.prefill_tokens_per_s, "tokens/s")?;
    line(stdout, "decode", &report.decode_ms_per_token, "ms/step")?;
    line(stdout, "", &report.decode_tokens_per_s, "tokens/s")?;
    if let Some(launched) = &report.decode_launched_ms_per_token {
        line(stdout, "decode, launched", launched, "ms/step, without replay")?;
    }
    if let Some(reason) = &report.replay_refusal {
        writeln!(stdout, "no decode step was replayed: {reason}")?;
    }
    let number = |key: &str| all[key].as_f64().unwrap_or(f64::NAN);
    writeln!(
        stdout,
        "a decode step reads {:.2} GB; the fastest step reaches {:.0} % of the memory bandwidth of {:.1} GB/s",
        number("decode_bytes_per_token") / 1e9,
        100.0 * number("decode_bandwidth_fraction"),
        number("memory_bandwidth_gb_s"),
    )?;
    write!(stdout, "weights {:.2} GB, loaded in {:.1} s", number("weight_bytes") / 1e9, number("load_s"))?;
    match all["peak_rss_bytes"].as_f64() {
        Some(rss) => writeln!(stdout, "; peak memory {:.2} GB", rss / 1e9)?,
        None => writeln!(stdout)?,
    }
    Ok(())
}

/// Prints a line for each number of clients.
fn print_clients(stdout: &mut impl Write, clients: &[ClientsReport]) -> Result<(), Failure> {
    if clients.is_empty() {
        return Ok(());
    }
    writeln!(
        stdout,
        "\n{:<16} {:>10} {:>16} {:>10} {:>16} {:>10}",
        "clients", "tokens/s", "first token, ms", "p99", "next token, ms", "p99"
    )?;
    for ClientsReport { clients, tokens_per_s, first_token_ms, inter_token_ms, .. } in clients {
        writeln!(
            stdout,
            "{clients:<16} {:>10.1} {:>16.1} {:>10.1} {:>16.1} {:>10.1}",
            tokens_per_s.median, first_token_ms.p50, first_token_ms.p99, inter_token_ms.p50, inter_token_ms.p99
        )?;
    }
    Ok(())
}

/// Peak rates of the machine. They are measured right after the stages, so that both have the same conditions.
struct Limits {
    /// Memory bandwidth in bytes per second.
    bytes_per_s: f64,
    /// Peak rate of each arithmetic unit, in operations per second.
    units: Vec<(ComputeUnit, f64)>,
}

impl Limits {
    /// Measures the peak rates of the arithmetic units that occur in a profile.
    fn measure(profile: &[StageProfile], bandwidth_gb_s: f64) -> Self {
        let mut units: Vec<ComputeUnit> =
            profile.iter().flat_map(|stage| &stage.operations).filter_map(|operation| operation.unit).collect();
        units.sort_unstable();
        units.dedup();
        let units = units.into_iter().filter_map(|unit| Some((unit, unit.peak()?))).collect();
        Self { bytes_per_s: 1e9 * bandwidth_gb_s, units }
    }

    /// Computes the fraction of the roofline that an operation reaches. At peak rates, the operation would take as long
    /// as its arithmetic or its memory traffic, whichever takes longer. This time is divided by the measured time. The
    /// fraction exceeds 1 if the operation reads from caches.
    fn share(&self, operation: &Operation) -> f64 {
        let peak = self.units.iter().find(|(unit, _)| Some(*unit) == operation.unit);
        let arithmetic = peak.map_or(0.0, |(_, peak)| operation.unit_operations / peak);
        arithmetic.max(operation.bytes / self.bytes_per_s) / operation.seconds
    }
}

/// Prints a line for each operation of each stage, and a line for the rest of the stage's time.
fn print_profile(stdout: &mut impl Write, profile: &[StageProfile], limits: &Limits) -> Result<(), Failure> {
    for StageProfile { stage, seconds, operations, .. } in profile {
        writeln!(
            stdout,
            "\n{stage:<28} {:>7} {:>10} {:>7} {:>10} {:>8} {:>9}  unit",
            "calls", "ms", "share", "GFLOP/s", "GB/s", "of limit"
        )?;
        for operation in operations {
            let Operation { name, calls, seconds: took, operations, bytes, .. } = operation;
            let (rate, bandwidth) = (operations / took / 1e9, bytes / took / 1e9);
            let share = 100.0 * took / seconds;
            let milliseconds = 1e3 * took;
            writeln!(
                stdout,
                "  {name:<26} {calls:>7} {milliseconds:>10.2} {share:>5.1} % {rate:>10.1} {bandwidth:>8.1} {:>7.0} %  {}",
                100.0 * limits.share(operation),
                operation.unit.map_or_else(String::new, |unit| unit.to_string()),
            )?;
        }
        let rest = seconds - operations.iter().map(|operation| operation.seconds).sum::<f64>();
        writeln!(stdout, "  {:<26} {:>7} {:>10.2} {:>5.1} %", "the rest", "", 1e3 * rest, 100.0 * rest / seconds)?;
    }
    for (unit, peak) in &limits.units {
        writeln!(stdout, "limit of {unit}: {:.0} GFLOP/s", peak / 1e9)?;
    }
    if limits.units.iter().any(|(unit, _)| *unit == ComputeUnit::Tiles) {
        writeln!(
            stdout,
            "operations on bf16 tiles take several tile products for each f32 product: `of limit` counts tile products, \
             GFLOP/s counts f32 products"
        )?;
    }
    Ok(())
}

/// Returns the configuration of a public model, or reads the `config.json` at a path.
fn shape_of(name: &OsStr) -> Result<ModelConfig, Failure> {
    if let Some(model) = name.to_str().and_then(PublicModel::named) {
        return Ok(model.config());
    }
    let path = Path::new(name);
    if path.file_name().is_none_or(|file| file != "config.json") {
        let names: Vec<&str> = PublicModel::ALL.iter().map(|model| model.name).collect();
        let expected = format!("{}, or the path of a config.json", names.join(", "));
        return Err(Failure::usage(format!("--random-weights {name:?}: expected {expected}")));
    }
    Ok(ModelConfig::from_file(path)?)
}

/// Returns the processors of the folder. Without a folder, returns the processors of the family's public checkpoints.
fn processors(folder: Option<&Path>, config: &ModelConfig) -> Result<BenchProcessors, Failure> {
    match folder {
        Some(folder) => {
            let processor = load_processor(folder)?;
            Ok(BenchProcessors::new(processor.image_processor().clone(), processor.frame_processor().cloned()))
        }
        None => {
            let family = config.family();
            let processors = family.image_processor().and_then(|images| Ok((images, family.frame_processor()?)));
            let (images, frames) = processors.map_err(|error| Failure::usage(error.to_string()))?;
            Ok(BenchProcessors::new(images, frames))
        }
    }
}
