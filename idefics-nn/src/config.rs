//! Checks configuration values before anything is allocated.

use std::ops::RangeInclusive;

/// A value of `config.json` that is invalid or not supported.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number outside the accepted range.
    #[error("`{field}` is {value}; expected {expected}")]
    Range {
        /// Key with its section, for example `vision_config.hidden_size`.
        field: &'static str,
        /// Value in the file.
        value: String,
        /// Description of the accepted range.
        expected: String,
    },
    /// A number that is not a multiple of another.
    #[error("`{field}` is {value}; expected a multiple of `{divisor_field}`, which is {divisor}")]
    Divisibility {
        /// Key of the number that must be a multiple of the divisor.
        field: &'static str,
        /// Value of `field` in the file.
        value: usize,
        /// Key of the divisor.
        divisor_field: &'static str,
        /// Value of the divisor.
        divisor: usize,
    },
    /// An option that is not implemented.
    #[error("`{field}` is {value:?}; supported: {supported}")]
    Unsupported {
        /// Key with its section, for example `text_config.model_type`.
        field: &'static str,
        /// Value in the file.
        value: String,
        /// Supported values.
        supported: &'static str,
    },
}

impl ConfigError {
    /// Strips `section` from the keys. `section` includes the dot: with `text_config.`, the key
    /// `text_config.hidden_size` becomes `hidden_size`. This is for a file that has the keys of the section at its top
    /// level.
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

    /// Checks that an integer is in a range.
    ///
    /// # Errors
    /// [`ConfigError::Range`] if it is not.
    pub fn check_range(field: &'static str, value: usize, range: RangeInclusive<usize>) -> Result<(), Self> {
        if range.contains(&value) {
            return Ok(());
        }
        let (start, end) = range.into_inner();
        let expected = if start == end { start.to_string() } else { format!("a number from {start} to {end}") };
        Err(Self::Range { field, value: value.to_string(), expected })
    }

    /// Checks that a real number is finite and greater than 0.
    ///
    /// # Errors
    /// [`ConfigError::Range`] if it is not.
    pub fn check_positive(field: &'static str, value: f64) -> Result<(), Self> {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        Err(Self::Range { field, value: value.to_string(), expected: "a finite number above 0".to_owned() })
    }

    /// Checks that a number is a multiple of another, which must not be 0.
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
