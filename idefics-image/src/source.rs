//! Where an image comes from, and its bytes read under limits.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use url::Url;

use crate::{DecodeOptions, ImageError, RgbImage, decode};

/// What an image may cost before it is refused. All limits hold before the pixels are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest encoded image, in bytes, counted while reading.
    pub max_bytes: u64,
    /// Largest area, in pixels. [`Self::with_max_pixels`] raises it together with the memory that it takes.
    pub max_pixels: u64,
    /// Largest decoded image in the file's own pixel format, in bytes.
    pub max_decoded_bytes: u64,
    /// Largest ratio of the longer side to the shorter.
    pub max_aspect_ratio: u32,
    /// Time for one remote image, redirects included.
    pub timeout: Duration,
    /// Redirects followed for one remote image.
    pub max_redirects: u32,
}

/// Bytes of a decoded pixel in the widest common format, RGBA with 16 bits a channel.
const MAX_BYTES_PER_PIXEL: u64 = 8;

/// Room for any photograph (64 MiB encoded, 64 megapixels), none for decompression bombs.
impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_pixels: 64_000_000,
            max_decoded_bytes: MAX_BYTES_PER_PIXEL * 64_000_000,
            max_aspect_ratio: 1000,
            timeout: Duration::from_secs(10),
            max_redirects: 3,
        }
    }
}

impl Limits {
    /// The same limits with another largest area in pixels, or none, and room for that many decoded pixels.
    #[must_use]
    pub fn with_max_pixels(self, max_pixels: Option<u64>) -> Self {
        let max_pixels = max_pixels.unwrap_or(u64::MAX);
        Self { max_pixels, max_decoded_bytes: max_pixels.saturating_mul(MAX_BYTES_PER_PIXEL), ..self }
    }
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A file on this machine.
    Path(PathBuf),
    /// An `http` or `https` address; needs the feature `http`.
    Url(Url),
    /// `data:image/…;base64,…`, kept as given.
    DataUrl(String),
    /// The encoded file itself.
    Bytes(Arc<[u8]>),
}

impl ImageSource {
    /// The encoded bytes, never more than [`Limits::max_bytes`] of them.
    ///
    /// # Errors
    /// [`ImageError::Read`], [`ImageError::NotAFile`], [`ImageError::TooManyBytes`], [`ImageError::Empty`],
    /// [`ImageError::DataUrl`], or one of the network variants.
    pub fn read(&self, limits: &Limits) -> Result<Cow<'_, [u8]>, ImageError> {
        let bytes = match self {
            Self::Path(path) => Cow::Owned(read_file(path, limits)?),
            Self::Url(url) => Cow::Owned(fetch(url, limits)?),
            Self::DataUrl(text) => Cow::Owned(decode_data_url(text, limits)?),
            Self::Bytes(bytes) => {
                if bytes.len() as u64 > limits.max_bytes {
                    return Err(ImageError::TooManyBytes { image: self.to_string(), limit: limits.max_bytes });
                }
                Cow::Borrowed(bytes.as_ref())
            }
        };
        if bytes.is_empty() {
            return Err(ImageError::Empty { image: self.to_string() });
        }
        Ok(bytes)
    }
}

/// How messages name the source: the path, the URL, `data URL`, or `image bytes`.
impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Url(url) => write!(f, "{url}"),
            Self::DataUrl(_) => f.write_str("data URL"),
            Self::Bytes(_) => f.write_str("image bytes"),
        }
    }
}

/// Decides what a string names: `data:` and `http(s)://` by their start, any other `scheme://` is refused, the rest
/// is a path.
impl FromStr for ImageSource {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        if starts_with_ignore_case(text, "data:") {
            return Ok(Self::DataUrl(text.to_owned()));
        }
        match text.split_once("://") {
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
                match Url::parse(text) {
                    Ok(url) => Ok(Self::Url(url)),
                    Err(error) => Err(ImageError::Url { url: text.to_owned(), reason: error.to_string() }),
                }
            }
            Some((scheme, _)) if is_scheme(scheme) => Err(ImageError::Url {
                url: text.to_owned(),
                reason: format!("the scheme {scheme} is not one that we read"),
            }),
            _ => Ok(Self::Path(PathBuf::from(text))),
        }
    }
}

impl From<PathBuf> for ImageSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<Vec<u8>> for ImageSource {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// Reads, checks and decodes an image to upright 8-bit RGB.
///
/// The source is read under [`Limits`], its format told from its first bytes, its size checked from the header before
/// anything is decoded, its EXIF orientation applied once, and its transparency treated as `alpha` says.
///
/// # Errors
/// Any [`ImageError`] that names an input; [`ImageError::kind`] sorts them.
pub fn load(source: &ImageSource, limits: &Limits, options: impl Into<DecodeOptions>) -> Result<RgbImage, ImageError> {
    decode(&source.read(limits)?, &source.to_string(), limits, options)
}

/// A scheme in a URL's sense of the word, so that `C://x` or `a b://c` stay paths.
fn is_scheme(text: &str) -> bool {
    text.len() > 1
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn read_file(path: &Path, limits: &Limits) -> Result<Vec<u8>, ImageError> {
    let image = || path.display().to_string();
    let read_error = |error| ImageError::Read { image: image(), error };

    // Opening a pipe would wait for its writer, so the kind is asked first; and once more on the open file.
    check_regular(path, &std::fs::metadata(path).map_err(read_error)?)?;
    let file = File::open(path).map_err(read_error)?;
    let metadata = file.metadata().map_err(read_error)?;
    check_regular(path, &metadata)?;

    if metadata.len() > limits.max_bytes {
        return Err(ImageError::TooManyBytes { image: image(), limit: limits.max_bytes });
    }
    // A file may grow while it is read, or call itself empty (as /proc does): count what really comes.
    let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
    file.take(limits.max_bytes + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooManyBytes { image: image(), limit: limits.max_bytes });
    }
    Ok(bytes)
}

fn check_regular(path: &Path, metadata: &std::fs::Metadata) -> Result<(), ImageError> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() { "a folder" } else { "a pipe, socket or device" };
    Err(ImageError::NotAFile { image: path.display().to_string(), found })
}

/// The media types whose bytes we read; the bytes themselves decide which decoder runs.
const MEDIA_TYPES: [&str; 8] = [
    "image/png",
    "image/jpeg",
    "image/jpg",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/x-ms-bmp",
    "application/octet-stream",
];

/// The bytes of `data:<media type>[;parameter…];base64,<payload>`: strict base64, ASCII white space ignored.
fn decode_data_url(text: &str, limits: &Limits) -> Result<Vec<u8>, ImageError> {
    let fail = |reason: String| ImageError::DataUrl { image: "data URL".to_owned(), reason };

    if !starts_with_ignore_case(text, "data:") {
        return Err(fail("it does not start with data:".to_owned()));
    }
    let (header, payload) = text[5..].split_once(',').ok_or_else(|| fail("there is no comma".to_owned()))?;
    let mut parameters = header.split(';').map(str::trim);
    let media_type = parameters.next().unwrap_or_default();
    if !MEDIA_TYPES.iter().any(|known| known.eq_ignore_ascii_case(media_type)) {
        return Err(fail(format!("the media type {media_type:?} is not an image format that we read")));
    }
    if !parameters.next_back().is_some_and(|last| last.eq_ignore_ascii_case("base64")) {
        return Err(fail("it is not marked ;base64".to_owned()));
    }
    // Four characters carry three bytes. White space does not count.
    let characters = payload.bytes().filter(|byte| !byte.is_ascii_whitespace()).count();
    if characters as u64 / 4 * 3 > limits.max_bytes.saturating_add(2) {
        return Err(ImageError::TooManyBytes { image: "data URL".to_owned(), limit: limits.max_bytes });
    }
    let packed: Cow<'_, [u8]> = if characters == payload.len() {
        Cow::Borrowed(payload.as_bytes())
    } else {
        Cow::Owned(payload.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect())
    };
    let bytes = BASE64.decode(packed).map_err(|error| fail(format!("it is not valid base64: {error}")))?;
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooManyBytes { image: "data URL".to_owned(), limit: limits.max_bytes });
    }
    Ok(bytes)
}

#[cfg(feature = "http")]
fn fetch(url: &Url, limits: &Limits) -> Result<Vec<u8>, ImageError> {
    let network = |reason: String| ImageError::Network { url: url.to_string(), reason };

    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(limits.timeout))
        .max_redirects(limits.max_redirects)
        .build()
        .new_agent();
    let mut response = match agent.get(url.as_str()).header("accept", "image/*").call() {
        Ok(response) => response,
        Err(ureq::Error::StatusCode(status)) => return Err(ImageError::HttpStatus { url: url.to_string(), status }),
        Err(error) => return Err(network(error.to_string())),
    };
    // The announced length is not trusted: bytes are counted as they come.
    let mut bytes = Vec::new();
    let mut body = response.body_mut().with_config().limit(u64::MAX).reader().take(limits.max_bytes + 1);
    body.read_to_end(&mut bytes).map_err(|error| network(error.to_string()))?;
    if bytes.len() as u64 > limits.max_bytes {
        return Err(ImageError::TooManyBytes { image: url.to_string(), limit: limits.max_bytes });
    }
    Ok(bytes)
}

#[cfg(not(feature = "http"))]
fn fetch(url: &Url, _limits: &Limits) -> Result<Vec<u8>, ImageError> {
    Err(ImageError::HttpDisabled { url: url.to_string() })
}
