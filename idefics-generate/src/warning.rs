//! Warnings about a model folder.

use std::path::PathBuf;

use idefics_checkpoint::CheckpointWarning;
use idefics_processor::ProcessorWarning;

use crate::GenerationWarning;

/// A problem with a model folder that does not prevent its use; see [`Idefics::warnings`](crate::Idefics::warnings).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelWarning {
    /// A warning about the processor's files.
    #[error(transparent)]
    Processor(#[from] ProcessorWarning),
    /// A warning about the weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointWarning),
    /// A warning about `generation_config.json`.
    #[error("{}: {warning}", path.display())]
    Generation {
        /// Path of the file.
        path: PathBuf,
        /// The warning about its options.
        warning: GenerationWarning,
    },
    /// A PEFT adapter lies next to the model's own weights. It is not applied.
    #[error(
        "{}: this adapter{} is not applied: adapters are not supported; merge it into its base model with PEFT \
         (`merge_and_unload`) to use it, or remove it",
        path.display(),
        base.as_ref().map_or_else(String::new, |base| format!(" of {base}"))
    )]
    AdapterBeside {
        /// Path of one of the adapter's files.
        path: PathBuf,
        /// Name of the adapter's base model.
        base: Option<String>,
    },
    /// `config.json` requests that the unquantised weights of the folder are quantised on load.
    #[error(
        "{}: `quantization_config` requests {format}, so linear layers are quantised while they are loaded; remove the \
         section to load them unquantised",
        path.display()
    )]
    QuantizedOnLoad {
        /// Path of the file.
        path: PathBuf,
        /// The format.
        format: &'static str,
    },
    /// The tokenizer has tokens without an embedding in the model. Prompts that contain them are rejected.
    #[error(
        "{}: the tokenizer has {} tokens from id {vocab_size} on, for which the model has no embedding (`vocab_size`); \
         prompts with them are rejected",
        folder.display(),
        tokens.len()
    )]
    TokensWithoutEmbedding {
        /// The model folder.
        folder: PathBuf,
        /// Number of rows of the embedding table.
        vocab_size: usize,
        /// The tokens, ordered by id.
        tokens: Vec<String>,
    },
}
