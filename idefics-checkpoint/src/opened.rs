//! The contents of the files from which a [`Checkpoint`](crate::Checkpoint) is built.

use std::collections::BTreeMap;

use crate::{CheckpointWarning, TensorEntry};

/// The tensors found in the files of a checkpoint, and warnings about those files.
pub(crate) struct Opened {
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
    pub(crate) warnings: Vec<CheckpointWarning>,
}

impl From<BTreeMap<String, TensorEntry>> for Opened {
    fn from(tensors: BTreeMap<String, TensorEntry>) -> Self {
        Self { tensors, warnings: Vec::new() }
    }
}
