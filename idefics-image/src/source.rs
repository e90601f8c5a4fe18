//! Where an image comes from, and its bytes read under limits.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use url::Url;

use crate::base64_text::{Base64Error, decode_base64, decode_data_url, is_base64};
use crate::fetch::fetch;
use crate::{DecodeOptions, Format, ImageError, ResizeTarget, RgbImage, SourcePolicy, decode, decode_resized};

/// What an image may cost before it is refused. Sizes are checked before anything is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest encoded image, in bytes, counted while reading.
    pub max_bytes: u64,
    /// Largest area, in pixels. [`Self::with_max_pixels`] raises it together with the memory that it takes.
    pub max_pixels: u64,
    /// Most bytes of pixels that a decoder may hold in the format of the file, and most that may be held as RGB: rows that
    /// are being resized, and the pictures that are made.
    pub max_decoded_bytes: u64,
    /// Largest ratio of the longer side to the shorter.
    pub max_aspect_ratio: u32,
    /// Time for one remote image, redirects included.
    pub timeout: Duration,
    /// Redirects followed for one remote image.
    pub max_redirects: u32,
}

/// Bytes that the widest decoder takes for a pixel: JPEG 2000 has four components of 32 bits.
pub(crate) const MAX_BYTES_PER_PIXEL: u64 = 16;

/// Bytes that an encoded pixel takes at most in common formats: RGBA with 16 bits a channel.
const MAX_ENCODED_BYTES_PER_PIXEL: u64 = 8;

/// The largest area that is decoded unless a caller says otherwise, in pixels.
const MAX_PIXELS: u64 = 64_000_000;

/// Room for any photograph or scan (64 megapixels; 256 MB in the file, so that one fits that is not compressed and has 8 bits a sample; 1 GB while it
/// is decoded), none for decompression bombs.
impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 4 * MAX_PIXELS + (1 << 20),
            max_pixels: MAX_PIXELS,
            max_decoded_bytes: MAX_BYTES_PER_PIXEL * MAX_PIXELS,
            max_aspect_ratio: 1000,
            timeout: Duration::from_secs(10),
            max_redirects: 3,
        }
    }
}

impl Limits {
    /// The same limits with another largest area in pixels, or none. The limits in bytes are raised to what that many
    /// pixels take.
    #[must_use]
    pub fn with_max_pixels(self, max_pixels: Option<u64>) -> Self {
        let max_pixels = max_pixels.unwrap_or(u64::MAX);
        Self {
            max_pixels,
            max_bytes: self.max_bytes.max(max_pixels.saturating_mul(MAX_ENCODED_BYTES_PER_PIXEL)),
            max_decoded_bytes: self.max_decoded_bytes.max(max_pixels.saturating_mul(MAX_BYTES_PER_PIXEL)),
            ..self
        }
    }
}

/// How the bytes of an image are read.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ReadOptions {
    /// What an image may cost.
    pub limits: Limits,
    /// Which sources may be read; all of them by default.
    pub sources: SourcePolicy,
    /// Reading ends with [`ImageError::Cancelled`] soon after this becomes `true`: within 100 ms while a server is waited
    /// for.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl ReadOptions {
    /// Whether the caller gave up.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.load(Ordering::Relaxed))
    }
}

/// Where an image comes from.
///
/// A string is read as Transformers' `load_image` reads it: an `http(s)` URL, a file, a data URL, or base64 of an image
/// file, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageSource {
    /// A file on this machine.
    Path(PathBuf),
    /// An `http` or `https` address; needs the feature `http`.
    Url(Url),
    /// `data:…,…`, kept as given; its payload is base64, whatever media type it declares.
    DataUrl(String),
    /// Text that may be base64 of an image file: it is, unless `folder` has a file of this name.
    Base64 {
        /// The text.
        text: String,
        /// Where a file of this name would be; the working folder if empty.
        folder: PathBuf,
    },
    /// The encoded file itself.
    Bytes(Arc<[u8]>),
}

impl ImageSource {
    /// The encoded bytes of a source of any kind, never more than [`Limits::max_bytes`] of them.
    ///
    /// # Errors
    /// As [`Self::read_with`].
    pub fn read(&self, limits: &Limits) -> Result<Cow<'_, [u8]>, ImageError> {
        self.read_with(&ReadOptions { limits: limits.clone(), ..ReadOptions::default() })
    }

    /// The encoded bytes, never more than [`Limits::max_bytes`] of them, if the policy allows this source.
    ///
    /// # Errors
    /// [`ImageError::NotAllowed`], [`ImageError::Read`], [`ImageError::NotAFile`], [`ImageError::TooManyBytes`],
    /// [`ImageError::Empty`], [`ImageError::DataUrl`], [`ImageError::Text`], [`ImageError::Cancelled`], or one of the
    /// network variants.
    pub fn read_with(&self, options: &ReadOptions) -> Result<Cow<'_, [u8]>, ImageError> {
        if options.is_cancelled() {
            return Err(ImageError::Cancelled { image: self.to_string() });
        }
        let ReadOptions { limits, sources, .. } = options;
        let bytes = match self {
            Self::Path(path) => Cow::Owned(read_file(&sources.file(path)?, limits)?),
            Self::Url(url) => Cow::Owned(fetch(url, options)?),
            Self::DataUrl(text) => {
                sources.data("data URL")?;
                Cow::Owned(decode_data_url(text, limits)?)
            }
            Self::Base64 { text, folder } => {
                // A file that may not be read is as good as none: whether it exists is nobody's business.
                match sources.file(&folder.join(text)).ok().filter(|path| is_file(path)) {
                    Some(path) => Cow::Owned(read_file(&path, limits)?),
                    None => Cow::Owned(self.decode_text(text, options)?),
                }
            }
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

    /// The file that the image is read from where all files may be read: a path, whether it exists or not, or the file
    /// that a text names.
    pub fn file(&self) -> Option<Cow<'_, Path>> {
        match self {
            Self::Path(path) => Some(Cow::Borrowed(path)),
            Self::Base64 { text, folder } => Some(folder.join(text)).filter(|path| is_file(path)).map(Cow::Owned),
            Self::Url(_) | Self::DataUrl(_) | Self::Bytes(_) => None,
        }
    }

    /// Looks for relative paths in `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        match self {
            Self::Path(path) => *path = folder.join(&*path), // an absolute path stays as it is
            Self::Base64 { folder: of_text, .. } => *of_text = folder.join(&*of_text),
            Self::Url(_) | Self::DataUrl(_) | Self::Bytes(_) => {}
        }
    }

    fn decode_text(&self, text: &str, options: &ReadOptions) -> Result<Vec<u8>, ImageError> {
        let image = || self.to_string();
        options.sources.data(&image())?;
        let limits = &options.limits;
        let bytes = decode_base64(text, limits).map_err(|error| match error {
            Base64Error::TooManyBytes => ImageError::TooManyBytes { image: image(), limit: limits.max_bytes },
            Base64Error::Invalid(reason) => ImageError::Text { image: image(), reason },
        })?;
        match Format::sniff(&bytes) {
            Ok(_) => Ok(bytes),
            Err(found) => Err(ImageError::Text { image: image(), reason: format!("found {found}") }),
        }
    }
}

/// How messages name the source: the path, the URL, `data URL`, the beginning of the text, or `image bytes`. Names are cut
/// to 200 characters.
impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(&path_name(path)),
            Self::Url(url) => f.write_str(&shorten(url.as_str(), 200)),
            Self::DataUrl(_) => f.write_str("data URL"),
            Self::Base64 { text, .. } => f.write_str(&shorten(text, 40)),
            Self::Bytes(_) => f.write_str("image bytes"),
        }
    }
}

/// How messages name a file.
pub(crate) fn path_name(path: &Path) -> String {
    shorten(&path.display().to_string(), 200)
}

/// Text of at most `limit` characters, with its length where it was cut.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// Decides what a string names: `data:` and `http(s)://` by their start, any other `scheme://` is refused. The rest is a
/// path, or base64 where it could be.
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
                    Err(error) => Err(ImageError::Url { url: shorten(text, 200), reason: error.to_string() }),
                }
            }
            Some((scheme, _)) if is_scheme(scheme) => Err(ImageError::Url {
                url: shorten(text, 200),
                reason: format!("the scheme {scheme} is not one that we read"),
            }),
            _ if is_base64(text) => Ok(Self::Base64 { text: text.to_owned(), folder: PathBuf::new() }),
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
/// The source, which may be of any kind, is read under [`Limits`], its format told from its first bytes, its size checked
/// from the header before anything is decoded, its EXIF orientation applied once, and its transparency treated as
/// `options` say.
///
/// # Errors
/// Any [`ImageError`] that names an input; [`ImageError::kind`] sorts them.
pub fn load(source: &ImageSource, limits: &Limits, options: impl Into<DecodeOptions>) -> Result<RgbImage, ImageError> {
    load_with(source, &ReadOptions { limits: limits.clone(), ..ReadOptions::default() }, options)
}

/// As [`load`], for sources that the policy allows.
///
/// # Errors
/// As [`load`], [`ImageError::NotAllowed`], and [`ImageError::Cancelled`].
pub fn load_with(
    source: &ImageSource,
    read: &ReadOptions,
    options: impl Into<DecodeOptions>,
) -> Result<RgbImage, ImageError> {
    decode(&source.read_with(read)?, &source.to_string(), &read.limits, options)
}

/// As [`load_with`], into the pictures that `plan` asks for, given the upright width and height; see
/// [`decode_resized`](crate::decode_resized).
///
/// # Errors
/// As [`load_with`], and [`ImageError::Target`].
pub fn load_resized(
    source: &ImageSource,
    read: &ReadOptions,
    options: impl Into<DecodeOptions>,
    plan: impl FnOnce(u32, u32) -> Vec<ResizeTarget> + Send,
) -> Result<Vec<RgbImage>, ImageError> {
    decode_resized(&source.read_with(read)?, &source.to_string(), &read.limits, options, plan)
}

/// A scheme in a URL's sense of the word, so that `C://x` or `a b://c` stay paths.
fn is_scheme(text: &str) -> bool {
    text.len() > 1
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

pub(crate) fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Whether there is a file. Names longer than any system allows are not looked for.
fn is_file(path: &Path) -> bool {
    path.as_os_str().len() <= 4096 && path.is_file()
}

fn read_file(path: &Path, limits: &Limits) -> Result<Vec<u8>, ImageError> {
    let image = || path_name(path);
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
    // Room is made as it is needed, since a sparse file may be longer than the memory.
    let mut bytes = Vec::new();
    let expected = (metadata.len().min(64 << 20) + 1) as usize;
    let no_memory = |_| ImageError::OutOfMemory { image: image(), needed: metadata.len() };
    bytes.try_reserve_exact(expected).map_err(no_memory)?;
    let read = file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| match error.kind() {
        ErrorKind::OutOfMemory => ImageError::OutOfMemory { image: image(), needed: metadata.len() },
        _ => read_error(error),
    })?;
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
    Err(ImageError::NotAFile { image: path_name(path), found })
}
