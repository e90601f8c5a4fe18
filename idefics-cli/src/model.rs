//! Loading a model with a progress bar, and Ctrl-C.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use idefics_generate::hub::{self, HubOptions, ModelSource};
use idefics_generate::placement::Plan;
use idefics_generate::{CancelToken, Error, Idefics, LoadStage, WeightOptions};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;

use crate::args::Global;
use crate::failure::Failure;
use crate::placing;

/// Where a model's files are.
pub(crate) enum ModelFolder {
    /// A folder of the user's, or of the hub's cache.
    Kept(PathBuf),
    /// The program's own model, written out while it is read.
    Embedded(TempDir),
}

impl ModelFolder {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Kept(folder) => folder,
            Self::Embedded(folder) => folder.path(),
        }
    }
}

/// The model folder that `--model` means; a hub id is downloaded to the standard cache first, without one it is the
/// program's own.
pub(crate) fn folder(global: &Global) -> Result<ModelFolder, Failure> {
    let Some(model) = &global.model else { return embedded() };
    match ModelSource::parse(model) {
        ModelSource::Folder(folder) => Ok(ModelFolder::Kept(folder)),
        ModelSource::Hub { repo, revision } => {
            let bar = byte_bar();
            let options = HubOptions::from_env().map_err(Error::from)?;
            let options = HubOptions { pickles: global.pickles(), ..options };
            let fetched = hub::fetch_with(&options, &repo, revision.as_deref(), &mut |state| {
                bar.set_length(state.total);
                bar.set_position(state.done);
                bar.set_message(state.file);
            });
            bar.finish_and_clear();
            Ok(ModelFolder::Kept(fetched.map_err(Error::from)?))
        }
    }
}

fn embedded() -> Result<ModelFolder, Failure> {
    let written = tempfile::tempdir().and_then(|folder| idefics_demo::write_model(folder.path()).map(|()| folder));
    let folder = written.map_err(|error| Failure::file_system(format!("the built-in model's files: {error}")))?;
    Ok(ModelFolder::Embedded(folder))
}

/// Says what the built-in model is, once.
fn introduce_embedded() {
    eprintln!(
        "built-in model: it knows pictures of coloured shapes and nothing else; for photographs give \
         --model HuggingFaceM4/idefics2-8b-chatty (a download of 33.6 GB) or a model folder"
    );
}

/// Loads what `--model`, `--device` and `--dtype` ask for.
pub(crate) fn load(global: &Global) -> Result<Idefics, Failure> {
    load_from(global, folder(global)?)
}

/// Loads the model of a folder that [`folder`] gave.
pub(crate) fn load_from(global: &Global, source: ModelFolder) -> Result<Idefics, Failure> {
    let folder = source.path();
    if matches!(source, ModelFolder::Embedded(_)) {
        introduce_embedded();
    }
    let (choice, device) = global.device.open().map_err(Error::from)?;
    let dtype = global.dtype.on(choice, &device).map_err(Error::from)?;
    if global.verbose {
        eprintln!("loading {} on {choice} in {dtype:?}", folder.display());
    }
    let bar = byte_bar();
    bar.set_message("loading weights");
    let weights = WeightOptions { pickles: global.pickles(), ..dtype.into() };
    let progress = |stage| {
        if let LoadStage::Weights(loaded) = stage {
            bar.set_length(loaded.bytes_total);
            bar.set_position(loaded.bytes_done);
        }
    };
    let model = match global.device_map {
        None => Idefics::from_folder(folder, &device, weights, progress),
        Some(_) => {
            let plan = Plan::of_model(folder, dtype, placing::places(global, choice)?)?;
            bar.suspend(|| eprint!("{plan}"));
            Idefics::from_folder_placed(folder, &plan, weights, progress)
        }
    };
    bar.finish_and_clear();
    Ok(model?)
}

/// A bar on standard error, drawn only if that is a terminal.
fn byte_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .expect("the template is valid");
    ProgressBar::no_length().with_style(style)
}

/// Ends the answer at the first Ctrl-C and the program at the second.
pub(crate) fn cancel_on_interrupt() -> CancelToken {
    let cancel = CancelToken::default();
    let in_handler = cancel.clone();
    // Without a handler Ctrl-C ends the program at once, which is no reason to refuse work.
    let _ = ctrlc::set_handler(move || {
        if in_handler.is_cancelled() {
            std::process::exit(130);
        }
        in_handler.cancel();
    });
    cancel
}

/// Ctrl-C in a program that goes on: it ends the answer that is being given, if one is.
pub(crate) struct Interrupts(Arc<Mutex<Option<CancelToken>>>);

/// From now on Ctrl-C ends answers and not the program.
pub(crate) fn interrupts() -> Interrupts {
    let current: Arc<Mutex<Option<CancelToken>>> = Arc::default();
    let in_handler = current.clone();
    let _ = ctrlc::set_handler(move || {
        if let Some(cancel) = &*in_handler.lock().unwrap_or_else(PoisonError::into_inner) {
            cancel.cancel();
        }
    });
    Interrupts(current)
}

impl Interrupts {
    /// What ends the answer that begins now.
    pub(crate) fn begin(&self) -> CancelToken {
        let cancel = CancelToken::default();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cancel.clone());
        cancel
    }

    /// The answer is over.
    pub(crate) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
