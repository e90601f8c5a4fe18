//! `rope_parameters` in a `text_config`.

use idefics_nn::{ConfigError, LongRopeScaling, RopeScaling, RotaryEmbedding, YarnScaling};
use serde::{Deserialize, Serialize};

use crate::TextConfig;

const SUPPORTED: &str = "default, linear, dynamic, yarn, llama3, longrope";

/// Parameters of rotary position embeddings. The type determines which of the fields are used.
///
/// Source: `RopeParameters` and `RotaryEmbeddingConfigMixin` in `modeling_rope_utils.py`, Transformers 5.23.0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RopeParameters {
    /// `default`, `linear`, `dynamic`, `yarn`, `llama3` or `longrope`.
    pub rope_type: Option<String>,
    /// The type as written by older versions of Transformers. Some files have both keys.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub legacy_type: Option<String>,
    /// Base of the frequencies.
    pub rope_theta: Option<f64>,
    /// Ratio by which the context is extended; frequencies are divided by it.
    pub factor: Option<f64>,
    /// See [`RopeScaling::Llama3`].
    pub low_freq_factor: Option<f64>,
    /// See [`RopeScaling::Llama3`].
    pub high_freq_factor: Option<f64>,
    /// Context length of the original training, in tokens.
    pub original_max_position_embeddings: Option<usize>,
    /// Factor that `yarn` and `longrope` apply to cosines and sines; `None` for the value recommended in their papers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// See [`YarnScaling::beta_fast`]; 32 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_fast: Option<f64>,
    /// See [`YarnScaling::beta_slow`]; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_slow: Option<f64>,
    /// Weight of `ln(factor)` in the numerator of yarn's `attention_factor`. Used only together with `mscale_all_dim`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f64>,
    /// Weight of `ln(factor)` in the denominator of yarn's `attention_factor`. Used only together with `mscale`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f64>,
    /// See [`YarnScaling::truncate`]; true by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
    /// See [`LongRopeScaling::short_factor`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub short_factor: Option<Vec<f64>>,
    /// See [`LongRopeScaling::long_factor`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_factor: Option<Vec<f64>>,
    /// Fraction of a head that is rotated. Only 1 is supported, except for the type `default`, which ignores this
    /// fraction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_rotary_factor: Option<f64>,
}

impl TextConfig {
    /// Returns the rotary embedding described by `rope_scaling` or, if that is missing, by `rope_parameters`.
    ///
    /// # Errors
    /// [`ConfigError`] if the type is not supported, or a number is missing or invalid.
    pub fn rotary(&self) -> Result<RotaryEmbedding, ConfigError> {
        // An empty section counts as missing.
        let is_given = |section: &&RopeParameters| **section != RopeParameters::default();
        let sections = [&self.rope_scaling, &self.rope_parameters];
        let parameters = sections.into_iter().flatten().find(is_given).cloned().unwrap_or_default();
        let theta = parameters.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        ConfigError::check_positive("text_config.rope_parameters.rope_theta", theta)?;
        let scaling = parameters.scaling(self, theta)?;
        Ok(RotaryEmbedding::new(self.head_dim(), theta, &scaling))
    }
}

impl RopeParameters {
    fn scaling(&self, config: &TextConfig, theta: f64) -> Result<RopeScaling, ConfigError> {
        let kind = self.rope_type.as_deref().or(self.legacy_type.as_deref()).unwrap_or("default");
        if let Some(part) = self.partial_rotary_factor.filter(|part| *part != 1.0 && kind != "default") {
            let field = "text_config.rope_parameters.partial_rotary_factor";
            return Err(ConfigError::Unsupported { field, value: part.to_string(), supported: "1" });
        }
        Ok(match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: self.factor()? },
            "dynamic" => {
                // The base is scaled with the exponent dim / (dim - 2), so a head width of 2 is too small.
                ConfigError::check_range("text_config.head_dim", config.head_dim(), 4..=4096)?;
                RopeScaling::Dynamic { factor: self.factor()?, max_position_embeddings: config.max_position_embeddings }
            }
            "yarn" => RopeScaling::Yarn(self.yarn(config, theta)?),
            "llama3" => RopeScaling::Llama3 {
                factor: self.factor()?,
                low_freq_factor: positive("text_config.rope_parameters.low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: positive("text_config.rope_parameters.high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: self.original_context(config)?,
            },
            "longrope" => RopeScaling::LongRope(self.long_rope(config)?),
            other => {
                let (field, value) = ("text_config.rope_parameters.rope_type", other.to_owned());
                return Err(ConfigError::Unsupported { field, value, supported: SUPPORTED });
            }
        })
    }

    fn factor(&self) -> Result<f64, ConfigError> {
        positive("text_config.rope_parameters.factor", self.factor)
    }

    /// Returns `factor` or, if it is missing, the ratio of the context length to that of the original training.
    fn factor_or_ratio(&self, config: &TextConfig, original: usize) -> Result<f64, ConfigError> {
        match self.factor {
            Some(_) => self.factor(),
            None => Ok(config.max_position_embeddings as f64 / original as f64),
        }
    }

    /// Returns the context length of the original training: the value in `config`, or else the value in this section.
    /// If both are missing, returns the current context length.
    fn original_context(&self, config: &TextConfig) -> Result<usize, ConfigError> {
        let original = config.original_max_position_embeddings.or(self.original_max_position_embeddings);
        let original = original.unwrap_or(config.max_position_embeddings);
        let field = "text_config.rope_parameters.original_max_position_embeddings";
        ConfigError::check_range(field, original, 2..=1 << 24).map(|()| original)
    }

    /// Checks and returns `attention_factor`, if it is given.
    fn attention_factor(&self) -> Result<Option<f64>, ConfigError> {
        let field = "text_config.rope_parameters.attention_factor";
        self.attention_factor.map(|factor| positive(field, Some(factor))).transpose()
    }

    /// Computes the parameters of the type `yarn`. Source: `_compute_yarn_parameters`.
    fn yarn(&self, config: &TextConfig, theta: f64) -> Result<YarnScaling, ConfigError> {
        if theta == 1.0 {
            return Err(ConfigError::Range {
                field: "text_config.rope_parameters.rope_theta",
                value: theta.to_string(),
                expected: "a number other than 1 with the type yarn".to_owned(),
            });
        }
        let original_max_position_embeddings = self.original_context(config)?;
        let factor = self.factor_or_ratio(config, original_max_position_embeddings)?;
        // As in the reference, 0 counts as missing.
        let non_zero = |value: Option<f64>| value.filter(|value| *value != 0.0);
        let mscale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let recommended = match (non_zero(self.mscale), non_zero(self.mscale_all_dim)) {
            (Some(weight), Some(all)) => mscale(weight) / mscale(all),
            _ => mscale(1.0),
        };
        let attention_factor = match self.attention_factor()? {
            Some(given) => given,
            None => positive("text_config.rope_parameters.mscale", Some(recommended))?,
        };
        let beta = |field, value, default| positive(field, Some(non_zero(value).unwrap_or(default)));
        Ok(YarnScaling {
            factor,
            attention_factor,
            beta_fast: beta("text_config.rope_parameters.beta_fast", self.beta_fast, 32.0)?,
            beta_slow: beta("text_config.rope_parameters.beta_slow", self.beta_slow, 1.0)?,
            original_max_position_embeddings,
            truncate: self.truncate.unwrap_or(true),
        })
    }

    /// Computes the parameters of the type `longrope`. Source: `_compute_longrope_parameters`.
    fn long_rope(&self, config: &TextConfig) -> Result<LongRopeScaling, ConfigError> {
        let original_max_position_embeddings = self.original_context(config)?;
        let factor = self.factor_or_ratio(config, original_max_position_embeddings)?;
        let recommended = match factor <= 1.0 {
            true => 1.0,
            false => (1.0 + factor.ln() / (original_max_position_embeddings as f64).ln()).sqrt(),
        };
        let half = config.head_dim() / 2;
        let list = |field, factors: &Option<Vec<f64>>| {
            let factors = factors.clone().unwrap_or_default();
            if factors.len() != half {
                let (value, expected) =
                    (format!("a list of {}", factors.len()), format!("{half} numbers, half of head_dim"));
                return Err(ConfigError::Range { field, value, expected });
            }
            factors.iter().try_for_each(|factor| ConfigError::check_positive(field, *factor)).map(|()| factors)
        };
        Ok(LongRopeScaling {
            short_factor: list("text_config.rope_parameters.short_factor", &self.short_factor)?,
            long_factor: list("text_config.rope_parameters.long_factor", &self.long_factor)?,
            attention_factor: self.attention_factor()?.unwrap_or(recommended),
            original_max_position_embeddings,
        })
    }
}

/// Requires a number to be present, finite and positive.
fn positive(field: &'static str, value: Option<f64>) -> Result<f64, ConfigError> {
    let value = value.ok_or_else(|| ConfigError::Range {
        field,
        value: "missing".to_owned(),
        expected: "a number above 0".to_owned(),
    })?;
    ConfigError::check_positive(field, value).map(|()| value)
}
