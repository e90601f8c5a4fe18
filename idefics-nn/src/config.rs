//! Checks of configuration values, made before anything is allocated.

use std::ops::RangeInclusive;

/// Why a value of `config.json` cannot describe a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number outside what is accepted.
    #[error("`{field}` is {value}, expected {expected}")]
    Range {
        /// The key, with its section: `vision_config.hidden_size`.
        field: &'static str,
        /// What the file says.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// Two numbers of which one must divide the other.
    #[error("`{field}` is {value}, which is not a multiple of `{divisor_field}`, {divisor}")]
    Divisibility {
        /// The key of the larger one.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The key of the divisor.
        divisor_field: &'static str,
        /// Its value.
        divisor: usize,
    },
    /// A choice that is not implemented.
    #[error("`{field}` is {value:?}, supported: {supported}")]
    Unsupported {
        /// The key.
        field: &'static str,
        /// What the file says.
        value: String,
        /// What is supported.
        supported: &'static str,
    },
}

impl ConfigError {
    /// The same for a file that has the section's keys at its top: `text_config.hidden_size` becomes `hidden_size`.
    #[must_use]
    pub fn without_section(mut self, section: &str) -> Self {
        let strip = |name: &mut &'static str| *name = name.strip_prefix(section).unwrap_or(name);
        match &mut self {
            Self::Range { field, .. } | Self::Unsupported { field, .. } => strip(field),
            Self::Divisibility { field, divisor_field, .. } => {
                strip(field);
                strip(divisor_field);
            }
        }
        self
    }

    /// An integer that must lie in a range.
    ///
    /// # Errors
    /// [`ConfigError::Range`] if it does not.
    pub fn check_range(field: &'static str, value: usize, range: RangeInclusive<usize>) -> Result<(), Self> {
        if range.contains(&value) {
            return Ok(());
        }
        Err(Self::Range {
            field,
            value: value.to_string(),
            expected: format!("a number from {} to {}", range.start(), range.end()),
        })
    }

    /// A real number that must be finite and above zero.
    ///
    /// # Errors
    /// [`ConfigError::Range`] if it is not.
    pub fn check_positive(field: &'static str, value: f64) -> Result<(), Self> {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        Err(Self::Range { field, value: value.to_string(), expected: "a finite number above 0".to_owned() })
    }

    /// A number that must be a multiple of another, which is not 0.
    ///
    /// # Errors
    /// [`ConfigError::Divisibility`] if it is not.
    pub fn check_multiple(
        field: &'static str,
        value: usize,
        divisor_field: &'static str,
        divisor: usize,
    ) -> Result<(), Self> {
        if value.is_multiple_of(divisor) {
            return Ok(());
        }
        Err(Self::Divisibility { field, value, divisor_field, divisor })
    }
}
