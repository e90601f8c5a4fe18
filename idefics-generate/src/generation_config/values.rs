//! Option values with several JSON representations.

use serde::{Deserialize, Serialize};

/// A single value or a list: `2` or `[2, 32002]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected one value or a list; token ids are integers from 0, stop strings are strings")]
pub enum OneOrMany<T> {
    /// One value.
    One(T),
    /// A list, which may be empty.
    Many(Vec<T>),
}

/// One or more token ids.
pub type EosTokenId = OneOrMany<u32>;

impl<T> OneOrMany<T> {
    /// Returns the values.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// When beam search stops looking for better answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "EarlyStoppingJson", into = "EarlyStoppingJson")]
pub enum EarlyStopping {
    /// `true`: as soon as there are `num_beams` finished answers.
    FirstFull,
    /// `false`: when the best running beam would not improve the answers if it ended now.
    #[default]
    Heuristic,
    /// `"never"`: when no running beam could improve the answers even at the maximum length.
    Never,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false or \"never\"")]
enum EarlyStoppingJson {
    Flag(bool),
    Word(NeverJson),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NeverJson {
    Never,
}

impl From<EarlyStoppingJson> for EarlyStopping {
    fn from(json: EarlyStoppingJson) -> Self {
        match json {
            EarlyStoppingJson::Flag(true) => Self::FirstFull,
            EarlyStoppingJson::Flag(false) => Self::Heuristic,
            EarlyStoppingJson::Word(NeverJson::Never) => Self::Never,
        }
    }
}

impl From<EarlyStopping> for EarlyStoppingJson {
    fn from(early_stopping: EarlyStopping) -> Self {
        match early_stopping {
            EarlyStopping::FirstFull => Self::Flag(true),
            EarlyStopping::Heuristic => Self::Flag(false),
            EarlyStopping::Never => Self::Word(NeverJson::Never),
        }
    }
}
