//! Which sources of images may be read.

use std::path::{Component, Path, PathBuf};

use url::Url;

use crate::ImageError;
use crate::source::{path_name, shorten};

/// Which sources of images may be read.
///
/// Strings in samples name files, addresses and data of whoever wrote them: a program that runs other people's samples
/// should not read its own machine's files for them, nor its network. Bytes that the caller hands over are always read.
///
/// ```
/// use idefics_image::{FileAccess, SourcePolicy, UrlAccess};
///
/// let of_a_server = SourcePolicy::data_only();
/// let mut of_a_data_set = SourcePolicy::default();
/// of_a_data_set.files = FileAccess::Below("data/images".into());
/// of_a_data_set.urls = UrlAccess::None;
/// assert_ne!(of_a_server, of_a_data_set);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourcePolicy {
    /// Which files may be read.
    pub files: FileAccess,
    /// Which addresses may be fetched, redirects included.
    pub urls: UrlAccess,
    /// Whether data URLs and plain base64 may be read.
    pub data: bool,
}

/// Which files may be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FileAccess {
    /// No file.
    None,
    /// Files below this folder, which neither `..` nor a symbolic link leads out of. Nobody else may change the folder
    /// meanwhile.
    Below(PathBuf),
    /// Every file.
    #[default]
    All,
}

/// Which addresses may be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum UrlAccess {
    /// No address.
    None,
    /// Addresses of these hosts, by exact name.
    Hosts(Vec<String>),
    /// Every `http` and `https` address, those of this machine and its network included.
    #[default]
    All,
}

/// Everything, for samples of the caller's own.
impl Default for SourcePolicy {
    fn default() -> Self {
        Self { files: FileAccess::All, urls: UrlAccess::All, data: true }
    }
}

impl SourcePolicy {
    /// Data URLs and base64 alone: nothing of this machine or its network is touched.
    pub fn data_only() -> Self {
        Self { files: FileAccess::None, urls: UrlAccess::None, data: true }
    }

    /// The path to open for `path`.
    ///
    /// # Errors
    /// [`ImageError::NotAllowed`]; [`ImageError::Read`] if a file below the folder is not there.
    pub(crate) fn file(&self, path: &Path) -> Result<PathBuf, ImageError> {
        let image = || path_name(path);
        let folder = match &self.files {
            FileAccess::All => return Ok(path.to_owned()),
            FileAccess::None => return Err(not_allowed(image(), "files", "files")),
            FileAccess::Below(folder) => folder,
        };
        let outside = || ImageError::NotAllowed {
            image: image(),
            what: format!("files outside {}", folder.display()),
            option: "--images-below, SourcePolicy::files",
        };
        let root =
            folder.canonicalize().map_err(|error| ImageError::Read { image: folder.display().to_string(), error })?;
        match path.canonicalize() {
            Ok(real) if real.starts_with(&root) => Ok(real),
            Ok(_) => Err(outside()),
            // Whether a file outside exists is nobody's business.
            Err(error) if is_below(path, folder) || is_below(path, &root) => {
                Err(ImageError::Read { image: image(), error })
            }
            Err(_) => Err(outside()),
        }
    }

    /// Checks an address before it is fetched.
    ///
    /// # Errors
    /// [`ImageError::NotAllowed`].
    pub(crate) fn url(&self, url: &Url) -> Result<(), ImageError> {
        let image = || shorten(url.as_str(), 200);
        match &self.urls {
            UrlAccess::All => Ok(()),
            UrlAccess::None => Err(not_allowed(image(), "addresses", "urls")),
            UrlAccess::Hosts(hosts) if hosts.iter().any(|host| Some(host.as_str()) == url.host_str()) => Ok(()),
            UrlAccess::Hosts(hosts) => Err(ImageError::NotAllowed {
                image: image(),
                what: format!("addresses of hosts other than {}", hosts.join(", ")),
                option: "SourcePolicy::urls",
            }),
        }
    }

    /// Checks that images in text may be read.
    ///
    /// # Errors
    /// [`ImageError::NotAllowed`].
    pub(crate) fn data(&self, image: &str) -> Result<(), ImageError> {
        match self.data {
            true => Ok(()),
            false => Err(not_allowed(image.to_owned(), "data URLs and base64", "data")),
        }
    }
}

fn not_allowed(image: String, what: &str, field: &str) -> ImageError {
    let option = match field {
        "files" => "--allow-sources files, SourcePolicy::files",
        "urls" => "--allow-sources urls, SourcePolicy::urls",
        _ => "--allow-sources data, SourcePolicy::data",
    };
    ImageError::NotAllowed { image, what: what.to_owned(), option }
}

/// Whether the words of `path` lead to a place below `folder`, without a look at the disk.
fn is_below(path: &Path, folder: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    normalized(&absolute(path)).starts_with(normalized(&absolute(folder)))
}

fn normalized(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}
