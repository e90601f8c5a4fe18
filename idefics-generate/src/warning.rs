//! Warnings about a model folder.

use std::path::PathBuf;

use idefics_checkpoint::CheckpointWarning;
use idefics_processor::ProcessorWarning;

use crate::GenerationWarning;

/// Something wrong with a model folder that can be used all the same; see [`Idefics::warnings`](crate::Idefics::warnings).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelWarning {
    /// About the processor's files.
    #[error(transparent)]
    Processor(#[from] ProcessorWarning),
    /// About the weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointWarning),
    /// About `generation_config.json`.
    #[error("{}: {warning}", path.display())]
    Generation {
        /// The file.
        path: PathBuf,
        /// The warning about its options.
        warning: GenerationWarning,
    },
    /// A PEFT adapter lies beside the model's own weights, and is not applied.
    #[error(
        "{}: this adapter{} is not applied: adapters are not supported; merge it into its base model with PEFT \
         (`merge_and_unload`) to use it, or remove it",
        path.display(),
        base.as_ref().map_or_else(String::new, |base| format!(" of {base}"))
    )]
    AdapterBeside {
        /// A file of the adapter.
        path: PathBuf,
        /// The model that it was trained on.
        base: Option<String>,
    },
    /// The folder asks for its plain weights to be quantised while they are loaded.
    #[error(
        "{}: `quantization_config` asks for {format}: linear layers are quantised while they are loaded; remove the \
         section to load them as they are",
        path.display()
    )]
    QuantizedOnLoad {
        /// The file.
        path: PathBuf,
        /// The format.
        format: &'static str,
    },
    /// The tokenizer has tokens that the model has no embedding for. A prompt with one of them is refused.
    #[error(
        "{}: the tokenizer has {} tokens from id {vocab_size} on, for which the model has no embedding (`vocab_size`); \
         prompts with them are refused",
        folder.display(),
        tokens.len()
    )]
    TokensWithoutEmbedding {
        /// The model folder.
        folder: PathBuf,
        /// Rows of the embedding table.
        vocab_size: usize,
        /// The tokens, in the order of their ids.
        tokens: Vec<String>,
    },
}
