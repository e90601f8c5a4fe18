//! Checkpoints of a run: weights, optimiser state and position, written atomically.
//!
//! `FOLDER/step-00000200/` contains `model.safetensors` (each weight in the format in which the module holds it),
//! `optimizer.safetensors` (`exp_avg.{tensor}`, `exp_avg_sq.{tensor}`, F32) and `state.json`. The folder is written
//! under a temporary name and renamed. Then the file `FOLDER/latest`, which contains the name of the newest checkpoint,
//! is replaced.
//!
//! All random choices of a run are derived from the step and the seed in the configuration. The step therefore also
//! determines the position in the data and the state of the random number generator.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData};
use idefics_checkpoint::{Checkpoint, write_atomically};
use idefics_nn::checkpoint::save;
use idefics_nn::{LoadModule, LoadOptions};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::adamw::Moments;
use crate::{TrainError, Trainer, TrainingConfig};

/// Number of checkpoints of a run that are kept.
const MAX_CHECKPOINTS: usize = 2;

/// Suffix of a checkpoint that is being written.
const TEMPORARY: &str = ".tmp";
/// Suffix of a checkpoint that another checkpoint of the same step is about to replace.
const REPLACED: &str = ".old";

/// The contents of `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    step: u64,
    config: TrainingConfig,
    /// For each tensor, the number of steps in which it had a gradient.
    tensor_steps: BTreeMap<String, u64>,
}

impl<M: Module + Sync> Trainer<M> {
    /// Writes a checkpoint to `folder`, which is created if necessary. Removes the checkpoints of earlier steps except
    /// the newest of them. Returns the path of the new checkpoint.
    ///
    /// Weights keep their dtypes, and quantised weights keep their codes. A previous run may have left checkpoints of
    /// later steps in the folder. They are not removed; [`Self::resume`] starts from the checkpoint that was written
    /// last.
    ///
    /// # Errors
    /// [`TrainError::Io`] or [`TrainError::Checkpoint`] if a file cannot be written. The previous checkpoint then
    /// remains the latest.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, TrainError> {
        let name = step_name(self.step);
        let [target, temporary, replaced] = ["", TEMPORARY, REPLACED].map(|end| folder.join(format!("{name}{end}")));
        std::fs::create_dir_all(folder).map_err(|source| io(folder, source))?;
        remove(&temporary)?; // left by an interrupted save
        std::fs::create_dir(&temporary).map_err(|source| io(&temporary, source))?;

        let tied: Vec<&str> = self.config.tied.iter().map(|(tied, _)| tied.as_str()).collect();
        save(self.module(), &temporary.join("model.safetensors"), None, &tied)?;
        self.save_moments(&temporary.join("optimizer.safetensors"))?;
        let tensor_steps = self.optimizer.moments.iter().map(|(name, moments)| (name.clone(), moments.step)).collect();
        let state = State { step: self.step, config: self.config.clone(), tensor_steps };
        write_atomically(&temporary.join("state.json"), |file| Ok(serde_json::to_writer_pretty(file, &state)?))?;

        if target.exists() {
            // The target is from an earlier save at the same step. It may be the latest checkpoint, so it is kept until
            // it has been replaced.
            remove(&replaced)?;
            std::fs::rename(&target, &replaced).map_err(|source| io(&target, source))?;
        }
        std::fs::rename(&temporary, &target).map_err(|source| io(&target, source))?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| io(folder, source))?;
        write_atomically(&folder.join("latest"), |file| file.write_all(name.as_bytes()))?;
        remove(&replaced)?;
        remove_earlier(folder, self.step)?;
        Ok(target)
    }

    /// Resumes the run with checkpoints in `folder`. Returns `None` if there is no checkpoint yet.
    ///
    /// The weights of `module` are replaced by those of the checkpoint, in the dtypes and formats of the checkpoint.
    /// `module` may be empty, loaded, or quantised. The optimiser state is created on `device`, which must not be an
    /// autodiff device.
    ///
    /// # Errors
    /// [`TrainError::OtherRun`] if the run was started with another configuration. [`TrainError::State`],
    /// [`TrainError::Checkpoint`] or [`TrainError::Io`] if the checkpoint cannot be read.
    pub fn resume(
        module: M,
        config: TrainingConfig,
        folder: &Path,
        device: &Device,
    ) -> Result<Option<Self>, TrainError> {
        let latest = folder.join("latest");
        let name = match std::fs::read_to_string(&latest) {
            Ok(name) => name,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io(&latest, source)),
        };
        if step_of(&name).is_none() {
            return Err(TrainError::State {
                path: latest,
                reason: format!("{name:?} is not the name of a checkpoint"),
            });
        }
        let (checkpoint, replaced) = (folder.join(&name), folder.join(format!("{name}{REPLACED}")));
        // A save may have been interrupted while it replaced the latest checkpoint. The old checkpoint then has another
        // name.
        let checkpoint = if !checkpoint.exists() && replaced.exists() { replaced } else { checkpoint };
        let path = checkpoint.join("state.json");
        let text = std::fs::read(&path).map_err(|source| io(&path, source))?;
        let state: State = serde_json::from_slice(&text)
            .map_err(|error| TrainError::State { path: path.clone(), reason: error.to_string() })?;
        if let Some(field) = different_field(&state.config, &config) {
            return Err(TrainError::OtherRun { path, field });
        }
        let tied: Vec<(&str, &str)> =
            config.tied.iter().map(|(tied, source)| (tied.as_str(), source.as_str())).collect();
        let as_stored = [String::new()];
        let options = LoadOptions { tied: &tied, as_stored: &as_stored, ..LoadOptions::default() };
        let module = Checkpoint::open(&checkpoint)?.load(module, &options, |_| ())?;
        let mut trainer = Self::new(module, config)?;
        trainer.step = state.step;
        trainer.optimizer.moments =
            read_moments(&checkpoint.join("optimizer.safetensors"), &state.tensor_steps, device)?;
        Ok(Some(trainer))
    }

    fn save_moments(&self, path: &Path) -> Result<(), TrainError> {
        let tensors: Vec<(String, TensorData)> = self
            .optimizer
            .moments
            .iter()
            .flat_map(|(name, Moments { exp_avg, exp_avg_sq, .. })| {
                [("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)]
                    .map(|(kind, moment)| (format!("{kind}.{name}"), moment.clone().into_data()))
            })
            .collect();
        let views = tensors.iter().map(|(name, data)| {
            let view = TensorView::new(Dtype::F32, data.shape().to_vec(), data.as_bytes());
            (name, view.expect("the bytes match the shape"))
        });
        let bytes = safetensors::serialize(views, None)
            .map_err(|error| TrainError::State { path: path.to_owned(), reason: error.to_string() })?;
        Ok(write_atomically(path, |file| file.write_all(&bytes))?)
    }
}

fn read_moments(
    path: &Path,
    steps: &BTreeMap<String, u64>,
    device: &Device,
) -> Result<BTreeMap<String, Moments>, TrainError> {
    let broken = |reason: String| TrainError::State { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|source| io(path, source))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
    let read = |name: String| {
        let view = file.tensor(&name).map_err(|error| broken(format!("`{name}`: {error}")))?;
        if view.dtype() != Dtype::F32 {
            return Err(broken(format!("`{name}` is {:?}; expected F32", view.dtype())));
        }
        let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        Ok(Tensor::<1>::from_data(TensorData::from(values.as_slice()), (device, DType::F32)))
    };
    steps
        .iter()
        .map(|(name, &step)| {
            let exp_avg = read(format!("exp_avg.{name}"))?;
            Ok((name.clone(), Moments { step, exp_avg, exp_avg_sq: read(format!("exp_avg_sq.{name}"))? }))
        })
        .collect()
}

/// Returns the name of the first setting that differs. `workers` is not compared, because it does not change results.
fn different_field(ours: &TrainingConfig, theirs: &TrainingConfig) -> Option<String> {
    let object = |config: &TrainingConfig| match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => unreachable!("a configuration serialises to an object"),
    };
    let theirs = object(theirs);
    let mut fields = object(ours).into_iter().filter(|(field, _)| field != "workers");
    fields.find(|(field, value)| theirs.get(field) != Some(value)).map(|(field, _)| field)
}

/// Removes the checkpoints of steps before `step`, except the latest `MAX_CHECKPOINTS - 1` of them, and the remains of
/// interrupted saves of such steps.
fn remove_earlier(folder: &Path, step: u64) -> Result<(), TrainError> {
    let mut earlier = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|source| io(folder, source))? {
        let path = entry.map_err(|source| io(folder, source))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let unfinished = [TEMPORARY, REPLACED].iter().find_map(|end| name.strip_suffix(end));
        let Some(found) = step_of(unfinished.unwrap_or(name)).filter(|&found| found < step) else { continue };
        match unfinished {
            Some(_) => remove(&path)?,
            None => earlier.push((found, path)),
        }
    }
    earlier.sort();
    let old = earlier.len().saturating_sub(MAX_CHECKPOINTS - 1);
    earlier[..old].iter().try_for_each(|(_, path)| remove(path))
}

/// Removes a folder, if it exists.
fn remove(folder: &Path) -> Result<(), TrainError> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(io(folder, source)),
        _ => Ok(()),
    }
}

fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Returns the step of the checkpoint that is called `name`.
fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

fn io(path: &Path, source: std::io::Error) -> TrainError {
    TrainError::Io { path: path.to_owned(), source }
}
