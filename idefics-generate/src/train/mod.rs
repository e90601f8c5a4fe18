//! Training: gradients, AdamW, schedules, and checkpoints from which a run goes on as if it had never stopped.
//!
//! A model trains on an autodiff device, `device.autodiff()`; apart from that it is the model that generates.
//!
//! ```no_run
//! use idefics_generate::train::{Schedule, Trainer, TrainingBatch, TrainingConfig};
//! # use idefics_generate::Idefics2;
//! # fn run(model: Idefics2, batches: impl Iterator<Item = Vec<TrainingBatch>>) -> Result<(), idefics_generate::train::TrainError> {
//! let config = TrainingConfig { learning_rate: 1e-4, schedule: Schedule::Cosine, ..TrainingConfig::new(1000) };
//! let mut trainer = Trainer::new(model, config)?;
//! for micro_batches in batches {
//!     let report = trainer.step(&micro_batches, Idefics2::training_gradients)?;
//!     println!("step {}: loss {:.4}", report.step, report.loss);
//! }
//! # Ok(())
//! # }
//! ```

#![allow(clippy::disallowed_methods)] // losses, norms and moments are read back

mod adamw;
mod batch;
mod gradients;
mod recompute;
mod schedule;
mod state;
mod trainer;

pub use adamw::{AdamW, AdamWConfig, WeightDecay};
pub use batch::{LabelledText, TrainingBatch};
pub use gradients::{Gradients, LossGradients};
pub use schedule::Schedule;
pub use trainer::{StepReport, TrainError, Trainer, TrainingConfig};
