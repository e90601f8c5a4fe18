//! Rotary frequencies of a head, and the ways in which checkpoints scale them to longer contexts.
//!
//! Source: `ROPE_INIT_FUNCTIONS` and `dynamic_rope_update` in `modeling_rope_utils.py`, Transformers 5.23.0.
//!
//! Numerics: values are rounded to f32 where Transformers rounds them.

use std::borrow::Cow;
use std::f64::consts::TAU;

/// How a checkpoint scales its frequencies to longer contexts: `rope_type` in `config.json`.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub enum RopeScaling {
    /// `default`: the frequencies of the RoFormer paper.
    #[default]
    None,
    /// `linear`: every frequency is divided by `factor`.
    Linear {
        /// Divisor of the frequencies.
        factor: f64,
    },
    /// `dynamic`: dynamic NTK. The base grows with the length of the sequence if the sequence is longer than the
    /// trained context.
    Dynamic {
        /// Factor by which the context is extended.
        factor: f64,
        /// Length of the trained context in tokens.
        max_position_embeddings: usize,
    },
    /// `yarn`: low frequencies are divided by a factor, high ones are kept, and attention scores are scaled.
    Yarn(YarnScaling),
    /// `llama3`: frequencies with long wavelengths are divided by `factor`, those with short wavelengths are kept, and
    /// those in between are interpolated.
    Llama3 {
        /// Divisor of the lowest frequencies.
        factor: f64,
        /// Frequencies with wavelengths above `original_max_position_embeddings / low_freq_factor` are divided by
        /// `factor`.
        low_freq_factor: f64,
        /// Frequencies with wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Length of the context of the original training, in tokens.
        original_max_position_embeddings: usize,
    },
    /// `longrope`: each frequency has its own divisor, from one of two lists.
    LongRope(LongRopeScaling),
}

/// Parameters of [`RopeScaling::Yarn`]. Paper: <https://arxiv.org/abs/2309.00071>.
#[derive(Debug, Clone, PartialEq)]
pub struct YarnScaling {
    /// Divisor of low frequencies.
    pub factor: f64,
    /// Factor applied to cosines and sines.
    pub attention_factor: f64,
    /// Frequencies that make more turns than this within the original context are kept.
    pub beta_fast: f64,
    /// Frequencies that make fewer turns than this within the original context are divided by `factor`.
    pub beta_slow: f64,
    /// Length of the context of the original training, in tokens.
    pub original_max_position_embeddings: usize,
    /// Whether the bounds of the interpolated range of frequencies are rounded outwards to whole indices.
    pub truncate: bool,
}

/// Parameters of [`RopeScaling::LongRope`]. Paper: <https://arxiv.org/abs/2402.13753>.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRopeScaling {
    /// Divisors for sequences of up to `original_max_position_embeddings` tokens, `[head_dim / 2]`.
    pub short_factor: Vec<f64>,
    /// Divisors for longer sequences, `[head_dim / 2]`.
    pub long_factor: Vec<f64>,
    /// Factor applied to cosines and sines.
    pub attention_factor: f64,
    /// Length of the context of the original training, in tokens.
    pub original_max_position_embeddings: usize,
}

/// Frequencies in radians per token, `[head_dim / 2]` each.
#[derive(Debug, Clone)]
pub(crate) enum Frequencies {
    /// The same for every sequence length.
    Fixed(Vec<f32>),
    /// Frequencies of [`RopeScaling::Dynamic`]. `original` applies to sequences of up to `max_position_embeddings`
    /// tokens.
    Dynamic { original: Vec<f32>, theta: f64, factor: f64, max_position_embeddings: usize },
    /// Frequencies of [`RopeScaling::LongRope`]. `short` applies to sequences of up to
    /// `original_max_position_embeddings` tokens.
    Long { short: Vec<f32>, long: Vec<f32>, original_max_position_embeddings: usize },
}

impl Frequencies {
    pub(crate) fn new(head_dim: usize, theta: f64, scaling: &RopeScaling) -> Self {
        let powers = powers(head_dim, theta);
        let unscaled = || powers.iter().map(|power| 1.0 / power);
        match scaling {
            RopeScaling::None => Self::Fixed(unscaled().collect()),
            RopeScaling::Linear { factor } => {
                Self::Fixed(unscaled().map(|inv_freq| inv_freq / *factor as f32).collect())
            }
            &RopeScaling::Dynamic { factor, max_position_embeddings } => {
                Self::Dynamic { original: unscaled().collect(), theta, factor, max_position_embeddings }
            }
            RopeScaling::Yarn(yarn) => Self::Fixed(yarn.frequencies(&powers, theta)),
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let original = original_max_position_embeddings as f64;
                let blend =
                    |inv_freq: f32| llama3(f64::from(inv_freq), factor, low_freq_factor, high_freq_factor, original);
                Self::Fixed(unscaled().map(|inv_freq| blend(inv_freq) as f32).collect())
            }
            RopeScaling::LongRope(long_rope) => {
                let divided = |factors: &[f64]| {
                    powers.iter().zip(factors).map(|(power, factor)| 1.0 / (*factor as f32 * power)).collect()
                };
                Self::Long {
                    short: divided(&long_rope.short_factor),
                    long: divided(&long_rope.long_factor),
                    original_max_position_embeddings: long_rope.original_max_position_embeddings,
                }
            }
        }
    }

    /// Returns the frequencies for a call after which the sequence is `seq_len` tokens long.
    pub(crate) fn at(&self, seq_len: usize) -> Cow<'_, [f32]> {
        match self {
            Self::Fixed(inv_freq) => Cow::Borrowed(inv_freq),
            Self::Dynamic { original, max_position_embeddings, .. } if seq_len <= *max_position_embeddings => {
                Cow::Borrowed(original)
            }
            &Self::Dynamic { ref original, theta, factor, max_position_embeddings } => {
                // Computed in f32, because Transformers computes this with a one-element tensor.
                let dim = 2.0 * original.len() as f32;
                let stretch = factor as f32 * seq_len as f32 / max_position_embeddings as f32 - (factor - 1.0) as f32;
                let theta = theta as f32 * stretch.powf(dim / (dim - 2.0));
                powers(2 * original.len(), f64::from(theta)).iter().map(|power| 1.0 / power).collect()
            }
            Self::Long { short, long, original_max_position_embeddings } => {
                Cow::Borrowed(if seq_len > *original_max_position_embeddings { long } else { short })
            }
        }
    }

    /// Returns whether the frequencies depend on the sequence length.
    pub(crate) fn depend_on_length(&self) -> bool {
        !matches!(self, Self::Fixed(_))
    }
}

impl RopeScaling {
    /// Returns the factor applied to cosines and sines.
    pub(crate) fn attention_factor(&self) -> f32 {
        match self {
            Self::Yarn(yarn) => yarn.attention_factor as f32,
            Self::LongRope(long_rope) => long_rope.attention_factor as f32,
            Self::None | Self::Linear { .. } | Self::Dynamic { .. } | Self::Llama3 { .. } => 1.0,
        }
    }
}

impl YarnScaling {
    /// Computes the frequencies, `[head_dim / 2]`. `powers` holds `theta^(2j / head_dim)` for each frequency `j`.
    fn frequencies(&self, powers: &[f32], theta: f64) -> Vec<f32> {
        let dim = 2.0 * powers.len() as f64;
        // The index of the frequency that makes `rotations` full turns within the original context.
        let index_of = |rotations: f64| {
            dim * (self.original_max_position_embeddings as f64 / (rotations * TAU)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (index_of(self.beta_fast), index_of(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001; // avoids a division by zero, as in Transformers
        }
        let ramp = |index: usize| ((index as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let blended = powers.iter().enumerate().map(|(index, power)| {
            let kept = 1.0 - ramp(index);
            1.0 / (self.factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
        });
        blended.collect()
    }
}

/// Computes `theta^(2j / head_dim)` for each frequency `j`: `[head_dim / 2]`.
fn powers(head_dim: usize, theta: f64) -> Vec<f32> {
    let exponent = |j: usize| (2 * j) as f32 / head_dim as f32;
    (0..head_dim / 2).map(|j| theta.powf(f64::from(exponent(j))) as f32).collect()
}

/// Scales one frequency as [`RopeScaling::Llama3`] specifies.
fn llama3(inv_freq: f64, factor: f64, low_freq_factor: f64, high_freq_factor: f64, original: f64) -> f64 {
    let wavelength = TAU / inv_freq; // tokens per full turn
    if wavelength > original / low_freq_factor {
        inv_freq / factor
    } else if wavelength < original / high_freq_factor {
        inv_freq
    } else {
        let kept = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - kept) * inv_freq / factor + kept * inv_freq
    }
}
