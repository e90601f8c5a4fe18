//! The loop's body: micro-batches in, one step of the optimiser out.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use idefics_generate::InputError;
use idefics_nn::{ParameterMapper, map_parameters};
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::{Deserialize, Serialize};

use crate::{AdamW, AdamWConfig, Gradients, LossGradients, Schedule, TrainError, WeightDecay};

/// Consecutive steps with a loss or gradients that are not finite, after which a run is given up.
const MAX_SKIPPED: u32 = 10;

/// What a run is made of. Two runs of one configuration over the same batches end with the same weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingConfig {
    /// Steps in all.
    pub total_steps: u64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// How it goes on after the warm-up.
    pub schedule: Schedule,
    /// Steps in which it rises from zero.
    pub warmup_steps: u64,
    /// The optimiser.
    pub adamw: AdamWConfig,
    /// What the gradients' common norm is clipped to.
    pub max_grad_norm: Option<f64>,
    /// Parameters whose names begin with one of these are not trained: `model.vision_model.`
    pub frozen: Vec<String>,
    /// Pairs (tensor, source): the first is the second (`tie_word_embeddings`).
    pub tied: Vec<(String, String)>,
    /// What the caller draws its batches from, together with the step.
    pub seed: u64,
    /// Micro-batches that are computed at the same time, each on its share of the cores. Changes no result.
    pub workers: usize,
}

impl TrainingConfig {
    /// The defaults of Transformers' `TrainingArguments` for a run of `total_steps` steps.
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

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// The step, from 0.
    pub step: u64,
    /// Mean loss of a label.
    pub loss: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The gradients' norm before clipping.
    pub grad_norm: f64,
    /// False if loss or gradients were not finite: nothing was changed then.
    pub applied: bool,
}

/// A module in training.
#[derive(Debug)]
pub struct Trainer<M> {
    pub(crate) module: M,
    pub(crate) optimizer: AdamW,
    pub(crate) config: TrainingConfig,
    /// Steps done.
    pub(crate) step: u64,
    /// Steps skipped in a row.
    skipped: u32,
    /// One for each worker.
    pools: Vec<ThreadPool>,
}

impl<M: Module + Sync> Trainer<M> {
    /// Begins a run with `module`, which is on an autodiff device.
    ///
    /// # Errors
    /// [`TrainError::Threads`].
    pub fn new(module: M, config: TrainingConfig) -> Result<Self, TrainError> {
        let module = map_parameters(module, &mut Freeze { frozen: &config.frozen });
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = config.workers.max(1);
        let pool = || ThreadPoolBuilder::new().num_threads((cores / workers).max(1)).build();
        let pools = (0..workers).map(|_| pool()).collect::<Result<_, _>>();
        let pools = pools.map_err(|error| TrainError::Threads { reason: error.to_string() })?;
        Ok(Self { module, optimizer: AdamW::new(config.adamw), config, step: 0, skipped: 0, pools })
    }

    /// The module as it is now.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// The configuration.
    pub fn config(&self) -> &TrainingConfig {
        &self.config
    }

    /// Steps done so far: where in the data the run is.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// One step on the mean loss over all labels of `micro_batches`. `gradients` computes one micro-batch's, as
    /// [`Trainable::training_gradients`](crate::Trainable::training_gradients) does.
    ///
    /// If loss or gradients are not finite nothing changes but the count of steps.
    ///
    /// # Errors
    /// [`TrainError::Input`], [`TrainError::NoLabels`], [`TrainError::NonFinite`] if it was so ten times in a row.
    pub fn step<B: Sync>(
        &mut self,
        micro_batches: &[B],
        gradients: impl Fn(&M, &B) -> Result<LossGradients, InputError> + Sync,
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
            self.module = self.optimizer.step(self.module.clone(), &gradients, learning_rate, &tied);
        } else {
            self.skipped += 1;
            if self.skipped >= MAX_SKIPPED {
                return Err(TrainError::NonFinite { step, skipped: self.skipped });
            }
        }
        Ok(StepReport { step, loss, learning_rate, grad_norm, applied })
    }

    /// The sum over the micro-batches, always added in their order.
    fn accumulate<B: Sync>(
        &self,
        micro_batches: &[B],
        gradients: &(impl Fn(&M, &B) -> Result<LossGradients, InputError> + Sync),
    ) -> Result<LossGradients, TrainError> {
        let mut sum = LossGradients { loss: 0.0, n_labels: 0, gradients: Gradients::default() };
        for together in micro_batches.chunks(self.pools.len()) {
            let results: Vec<Result<LossGradients, InputError>> = std::thread::scope(|scope| {
                let workers: Vec<_> = together
                    .iter()
                    .zip(&self.pools)
                    .map(|(batch, pool)| {
                        // Leaves of its own, so that the workers' graphs have nothing in common.
                        let module = leaves(&self.module);
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

/// The same weights, in memory that is shared, as leaves of a new graph.
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
}

impl ParameterMapper for Freeze<'_> {
    fn map<const D: usize>(&mut self, name: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let frozen = self.frozen.iter().any(|prefix| name.starts_with(prefix));
        param.set_require_grad(!frozen)
    }
}
