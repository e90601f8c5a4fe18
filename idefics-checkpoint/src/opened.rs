//! What the files of a checkpoint hold, before it is one.

use std::collections::BTreeMap;

use crate::{CheckpointWarning, TensorEntry};

/// What the files of a checkpoint hold.
pub(crate) struct Opened {
    pub(crate) tensors: BTreeMap<String, TensorEntry>,
    pub(crate) warnings: Vec<CheckpointWarning>,
}

impl From<BTreeMap<String, TensorEntry>> for Opened {
    fn from(tensors: BTreeMap<String, TensorEntry>) -> Self {
        Self { tensors, warnings: Vec::new() }
    }
}
