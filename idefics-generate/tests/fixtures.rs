//! Reads the fixtures written by `generation_fixtures.py`, or those in the folder that `GENERATION_FIXTURES` names.
//! They are JSON: `null` means -inf, `"nan"` means NaN, and `"inf"` means infinity.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
pub(crate) enum Score {
    Forbidden(()),
    Number(f32),
    Word(Word),
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Word {
    Nan,
    Inf,
}

impl From<Score> for f32 {
    fn from(score: Score) -> Self {
        match score {
            Score::Forbidden(()) => f32::NEG_INFINITY,
            Score::Number(number) => number,
            Score::Word(Word::Nan) => f32::NAN,
            Score::Word(Word::Inf) => f32::INFINITY,
        }
    }
}

pub(crate) fn floats(scores: &[Score]) -> Vec<f32> {
    scores.iter().copied().map(f32::from).collect()
}

pub(crate) fn read<T: DeserializeOwned>(name: &str) -> T {
    let committed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = std::env::var_os("GENERATION_FIXTURES").map_or_else(committed, PathBuf::from);
    let path = folder.join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the largest difference, relative for expected values above 1. It is infinite if only one of two scores is
/// forbidden or not finite.
pub(crate) fn max_difference(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let difference = |(a, b): (&f32, &f32)| match a == b || (a.is_nan() && b.is_nan()) {
        true => 0.0,
        false if a.is_finite() && b.is_finite() => (a - b).abs() / b.abs().max(1.0),
        false => f32::INFINITY,
    };
    actual.iter().zip(expected).map(difference).fold(0.0, f32::max)
}
