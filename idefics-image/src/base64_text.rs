//! Decodes images given as text: data URLs and plain base64.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::source::starts_with_ignore_case;
use crate::{ImageError, Limits};

/// Base64 with the standard alphabet. Padding is optional, and unused trailing bits are ignored, as in Python.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Minimum length of text that is treated as base64, in characters. The smallest GIF has 35 bytes, which are 48
/// characters.
const MIN_BASE64: usize = 40;

/// Returns whether a string that is not a URL could be an image file in base64: it is long enough and consists of
/// base64 characters and white space. Most file names do not pass, because they contain a dot.
pub(crate) fn is_base64(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    text.len() >= MIN_BASE64 && text.bytes().all(|byte| is_letter(byte) || byte.is_ascii_whitespace())
}

/// Decodes the payload of a data URL, `data:[<media type>][;parameter…][;base64],<payload>`. As in Transformers'
/// `load_image`, the payload is always treated as base64, even if the header does not say so. The media type is
/// ignored.
pub(crate) fn decode_data_url(text: &str, limits: &Limits) -> Result<Vec<u8>, ImageError> {
    let fail = |reason: &str| ImageError::DataUrl { image: "data URL".to_owned(), reason: reason.to_owned() };
    if !starts_with_ignore_case(text, "data:") {
        return Err(fail("it does not start with data:"));
    }
    let (_, payload) = text[5..].split_once(',').ok_or_else(|| fail("there is no comma"))?;
    decode_base64(payload, limits).map_err(|error| match error {
        Base64Error::TooManyBytes => ImageError::TooManyBytes { image: "data URL".to_owned(), limit: limits.max_bytes },
        Base64Error::Invalid(reason) => fail(&reason),
    })
}

/// Why base64 text could not be decoded.
pub(crate) enum Base64Error {
    /// The text decodes to more than [`Limits::max_bytes`] bytes.
    TooManyBytes,
    /// What is wrong with the text.
    Invalid(String),
}

/// Decodes base64. ASCII white space is ignored.
pub(crate) fn decode_base64(text: &str, limits: &Limits) -> Result<Vec<u8>, Base64Error> {
    // Four characters encode three bytes.
    let characters = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).count();
    if characters as u64 / 4 * 3 > limits.max_bytes.saturating_add(2) {
        return Err(Base64Error::TooManyBytes);
    }
    let decoded = match characters == text.len() {
        true => BASE64.decode(text),
        false => BASE64.decode(text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>()),
    };
    let bytes = decoded.map_err(|error| Base64Error::Invalid(format!("it is not valid base64: {error}")))?;
    match bytes.len() as u64 > limits.max_bytes {
        true => Err(Base64Error::TooManyBytes),
        false => Ok(bytes),
    }
}
