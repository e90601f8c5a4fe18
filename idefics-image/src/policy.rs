//! Policies that decide which image sources may be read.

use std::path::{Component, Path, PathBuf};

use url::Url;

use crate::ImageError;
use crate::source::{path_name, shorten};

/// A policy that decides which image sources may be read.
///
/// The strings in a sample can name any file or address. A program that runs samples written by other people should not
/// let these samples read files of its machine or addresses in its network. Bytes passed by the caller
/// ([`ImageSource::Bytes`](crate::ImageSource::Bytes)) are always allowed.
///
/// ```
/// use idefics_image::{FileAccess, SourcePolicy, UrlAccess};
///
/// let for_server = SourcePolicy::data_only();
/// let mut for_data_set = SourcePolicy::default();
/// for_data_set.files = FileAccess::Below("data/images".into());
/// for_data_set.urls = UrlAccess::None;
/// assert_ne!(for_server, for_data_set);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourcePolicy {
    /// Which files may be read.
    pub files: FileAccess,
    /// Which URLs may be fetched. Each redirect is checked too.
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
    /// Files below this folder. Paths that leave the folder through `..` or a symbolic link are rejected. The check is
    /// not safe if another program changes the folder at the same time.
    Below(PathBuf),
    /// Every file.
    #[default]
    All,
}

/// Which URLs may be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum UrlAccess {
    /// No URL.
    None,
    /// URLs whose host is in this list. The host name must match exactly.
    Hosts(Vec<String>),
    /// Every `http` and `https` URL, including addresses of this machine and its local network.
    #[default]
    All,
}

/// The default policy allows everything. It is meant for samples that the caller wrote.
impl Default for SourcePolicy {
    fn default() -> Self {
        Self { files: FileAccess::All, urls: UrlAccess::All, data: true }
    }
}

impl SourcePolicy {
    /// Returns a policy that allows only data URLs and base64. Neither files nor the network are accessed.
    pub fn data_only() -> Self {
        Self { files: FileAccess::None, urls: UrlAccess::None, data: true }
    }

    /// Checks `path` and returns the path to open.
    ///
    /// # Errors
    /// [`ImageError::NotAllowed`]; [`ImageError::Read`] if the folder, or a file below it, cannot be resolved.
    pub fn file(&self, path: &Path) -> Result<PathBuf, ImageError> {
        let image = || path_name(path);
        let folder = match &self.files {
            FileAccess::All => return Ok(path.to_owned()),
            FileAccess::None => return Err(not_allowed(image(), "files", "files")),
            FileAccess::Below(folder) => folder,
        };
        let outside = || ImageError::NotAllowed {
            image: image(),
            what: format!("files outside {}", folder.display()),
            option: "--images-below FOLDER",
        };
        let root =
            folder.canonicalize().map_err(|error| ImageError::Read { image: folder.display().to_string(), error })?;
        match path.canonicalize() {
            Ok(real) if real.starts_with(&root) => Ok(real),
            Ok(_) => Err(outside()),
            // The error must not reveal whether a file outside the folder exists.
            Err(error) if is_below(path, folder) || is_below(path, &root) => {
                Err(ImageError::Read { image: image(), error })
            }
            Err(_) => Err(outside()),
        }
    }

    /// Checks a URL before it is fetched.
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

    /// Checks that data URLs and base64 may be read. `image` is the name for messages.
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
        "files" => "--allow-sources files",
        "urls" => "--allow-sources urls",
        _ => "--allow-sources data",
    };
    ImageError::NotAllowed { image, what: what.to_owned(), option }
}

/// Returns whether `path` is below `folder`. Only the texts of the paths are compared, without access to the file
/// system.
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
