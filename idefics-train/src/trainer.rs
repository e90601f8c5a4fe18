//! The training step: computes the gradients of micro-batches and updates the weights.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use idefics_nn::{ParameterMapper, map_parameters};
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::{Deserialize, Serialize};

use crate::{AdamW, AdamWConfig, BatchError, LossGradients, Schedule, TrainError, WeightDecay};

/// Number of consecutive steps with a non-finite loss or gradient after which a run is aborted.
const MAX_SKIPPED: u32 = 10;

/// Configuration of a run. Two runs with the same configuration and the same batches produce the same weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Total number of steps.
    pub total_steps: u64,
    /// Maximum learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// How the learning rate changes after the warm-up.
    pub schedule: Schedule,
    /// Number of steps in which the learning rate rises linearly from zero.
    pub warmup_steps: u64,
    /// Hyperparameters of the optimiser.
    pub adamw: AdamWConfig,
    /// Maximum norm of all gradients together, enforced by clipping; `None` for no clipping.
    pub max_grad_norm: Option<f64>,
    /// Name prefixes of parameters that are not trained, such as `model.vision_model.`.
    pub frozen: Vec<String>,
    /// Pairs (tensor, source) that share their values (`tie_word_embeddings`). The source must precede the tensor in
    /// the module.
    pub tied: Vec<(String, String)>,
    /// Random seed. The caller draws its batches from the seed and the step.
    pub seed: u64,
    /// Number of micro-batches computed in parallel, each on an equal share of the cores. The number does not change
    /// results.
    pub workers: usize,
}

impl TrainingConfig {
    /// Returns the defaults of Transformers' `TrainingArguments` for a run of `total_steps` steps.
    pub fn new(total_steps: u64) -> Self {
        Self {
            total_steps,
            learning_rate: 5e-5,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            adamw: AdamWConfig { weight_decay: WeightDecay::Matrices(0.0), ..AdamWConfig::default() },
            max_grad_norm: Some(1.0),
            frozen: Vec::new(),
            tied: Vec::new(),
            seed: 42,
            workers: 1,
        }
    }
}

/// Report of one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// The step, counted from 0.
    pub step: u64,
    /// Mean loss per label.
    pub loss: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Whether the weights were updated. False if loss or gradients were not finite.
    pub applied: bool,
}

/// A module with its optimiser and the progress of a run.
#[derive(Debug)]
pub struct Trainer<M> {
    /// The module. `None` only while the optimiser replaces the weights one by one, so that no old copy of them is
    /// kept.
    module: Option<M>,
    pub(crate) optimizer: AdamW,
    pub(crate) config: TrainingConfig,
    /// Number of steps done, including skipped ones.
    pub(crate) step: u64,
    /// Number of consecutive steps skipped so far.
    skipped: u32,
    /// One thread pool per worker.
    pools: Vec<ThreadPool>,
}

impl<M: Module + Sync> Trainer<M> {
    /// Starts a run with `module`, which must be on an autodiff device. Its parameters keep their dtypes.
    ///
    /// Gradients, moments and updates of BF16 and F16 parameters are computed in F32. Rounding the new value loses
    /// changes of less than about 1/512 of a BF16 value (1/4096 in F16). With small learning rates, load the trained
    /// parameters in F32 and only frozen parameters in BF16 or quantised.
    ///
    /// # Errors
    /// [`TrainError::Device`] if `module` is not on an autodiff device, [`TrainError::Threads`] if the worker threads
    /// cannot be started.
    pub fn new(module: M, config: TrainingConfig) -> Result<Self, TrainError> {
        let mut freeze = Freeze { frozen: &config.frozen, without_autodiff: None };
        let module = map_parameters(module, &mut freeze);
        if let Some(parameter) = freeze.without_autodiff {
            return Err(TrainError::Device { parameter });
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = config.workers.max(1);
        let pool = || ThreadPoolBuilder::new().num_threads((cores / workers).max(1)).build();
        let pools = (0..workers).map(|_| pool()).collect::<Result<_, _>>();
        let pools = pools.map_err(|error| TrainError::Threads { reason: error.to_string() })?;
        let module = Some(module);
        Ok(Self { module, optimizer: AdamW::new(config.adamw), config, step: 0, skipped: 0, pools })
    }

    /// Returns the module with its current weights.
    ///
    /// # Panics
    /// If an earlier [`Self::step`] panicked while it replaced the weights.
    pub fn module(&self) -> &M {
        self.module.as_ref().expect("no step has panicked")
    }

    /// Returns the configuration of the run.
    pub fn config(&self) -> &TrainingConfig {
        &self.config
    }

    /// Returns the number of steps done so far, which is also the position in the data.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Runs one optimiser step on the mean loss over all labels of `micro_batches`. `gradients` computes the loss and
    /// gradients of one micro-batch, like [`Trainable::training_gradients`](crate::Trainable::training_gradients).
    ///
    /// If the loss or the gradients are not finite, the step is counted, but the weights and the optimiser state do not
    /// change. They do not change after an error either.
    ///
    /// # Errors
    /// [`TrainError::Input`] if a micro-batch does not fit the model, [`TrainError::NoLabels`] if all labels are
    /// ignored, [`TrainError::NonFinite`] if loss or gradients were not finite in ten consecutive steps.
    pub fn step<B: Sync>(
        &mut self,
        micro_batches: &[B],
        gradients: impl Fn(&M, &B) -> Result<LossGradients, BatchError> + Sync,
    ) -> Result<StepReport, TrainError> {
        let step = self.step;
        let LossGradients { loss, n_labels, mut gradients } = self.accumulate(micro_batches, &gradients)?;
        if n_labels == 0 {
            return Err(TrainError::NoLabels { step });
        }
        gradients.scale(1.0 / n_labels as f64);
        let tied: Vec<(&str, &str)> =
            self.config.tied.iter().map(|(tied, source)| (tied.as_str(), source.as_str())).collect();
        gradients.tie(&tied);
        let grad_norm = match self.config.max_grad_norm {
            Some(max_norm) => gradients.clip(max_norm),
            None => gradients.norm(),
        };
        let TrainingConfig { schedule, warmup_steps, total_steps, .. } = self.config;
        let learning_rate = self.config.learning_rate * schedule.factor(step, warmup_steps, total_steps);
        let loss = loss / n_labels as f64;
        let applied = loss.is_finite() && grad_norm.is_finite();
        self.step += 1;
        if applied {
            self.skipped = 0;
            let module = self.module.take().expect("no step has panicked");
            self.module = Some(self.optimizer.step(module, &gradients, learning_rate, &tied));
        } else {
            self.skipped += 1;
            if self.skipped >= MAX_SKIPPED {
                return Err(TrainError::NonFinite { step, skipped: self.skipped });
            }
        }
        Ok(StepReport { step, loss, learning_rate, grad_norm, applied })
    }

    /// Sums the loss and gradients over the micro-batches in their order, so that the result does not depend on timing.
    fn accumulate<B: Sync>(
        &self,
        micro_batches: &[B],
        gradients: &(impl Fn(&M, &B) -> Result<LossGradients, BatchError> + Sync),
    ) -> Result<LossGradients, TrainError> {
        let mut sum = LossGradients::default();
        for chunk in micro_batches.chunks(self.pools.len()) {
            let results: Vec<Result<LossGradients, BatchError>> = std::thread::scope(|scope| {
                let workers: Vec<_> = chunk
                    .iter()
                    .zip(&self.pools)
                    .map(|(batch, pool)| {
                        // Every worker gets its own leaf tensors, so that the autodiff graphs are independent.
                        let module = leaves(self.module());
                        scope.spawn(move || pool.install(|| gradients(&module, batch)))
                    })
                    .collect();
                let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                workers.into_iter().map(join).collect()
            });
            for result in results {
                let result = result.map_err(|source| TrainError::Input { step: self.step, source })?;
                sum.loss += result.loss;
                sum.n_labels += result.n_labels;
                sum.gradients.accumulate(result.gradients);
            }
        }
        Ok(sum)
    }
}

/// Returns the same module with its weights as leaves of a new autodiff graph. Both modules share the memory of the
/// weights.
fn leaves<M: Module>(module: &M) -> M {
    map_parameters(module.clone(), &mut Leaves)
}

struct Leaves;

impl ParameterMapper for Leaves {
    fn map<const D: usize>(&mut self, _name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let is_require_grad = param.is_require_grad();
        param.map(|value| Tensor::from_inner(value.inner()).set_require_grad(is_require_grad))
    }
}

struct Freeze<'a> {
    frozen: &'a [String],
    /// Name of the first parameter on a device without autodiff.
    without_autodiff: Option<String>,
}

impl ParameterMapper for Freeze<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.lazy_device().is_autodiff() {
            self.without_autodiff.get_or_insert_with(|| name.to_owned());
        }
        let frozen = self.frozen.iter().any(|prefix| name.starts_with(prefix));
        param.set_require_grad(!frozen)
    }
}
