//! Restrictions on the image sources of samples.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use idefics_generate::processor::image::{FileAccess, SourcePolicy, UrlAccess};

/// Options that restrict the image sources of untrusted samples.
#[derive(Debug, Clone, Args)]
pub(crate) struct SourceArgs {
    /// Image sources that samples may use [default: all]. Restrict this for untrusted samples, which could name files
    /// on this machine and addresses in its network.
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    allow_sources: Option<Vec<SourceKind>>,
    /// Read the image files that samples name only from this folder and its subfolders. Paths that leave the folder by
    /// `..` or symbolic links are rejected.
    #[arg(long, value_name = "FOLDER")]
    images_below: Option<PathBuf>,
}

/// A kind of image source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SourceKind {
    /// Files on this machine.
    Files,
    /// http(s) URLs, including those in the local network.
    Urls,
    /// data: URLs and base64.
    Data,
    /// No images at all.
    None,
}

impl SourceArgs {
    /// Returns the image sources that samples may use.
    pub(crate) fn policy(&self) -> SourcePolicy {
        let allows = |kind| self.allow_sources.as_ref().is_none_or(|kinds| kinds.contains(&kind));
        let mut policy = SourcePolicy::default();
        policy.files = match &self.images_below {
            Some(folder) => FileAccess::Below(folder.clone()),
            None if allows(SourceKind::Files) => FileAccess::All,
            None => FileAccess::None,
        };
        policy.urls = if allows(SourceKind::Urls) { UrlAccess::All } else { UrlAccess::None };
        policy.data = allows(SourceKind::Data);
        policy
    }

    /// Returns whether samples may read any file.
    pub(crate) fn allows_all_files(&self) -> bool {
        self.policy().files == FileAccess::All
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sources: SourceArgs,
    }

    fn policy(line: &[&str]) -> SourcePolicy {
        Line::try_parse_from([&["idefics"], line].concat()).unwrap().sources.policy()
    }

    #[test]
    fn all_sources_are_allowed_by_default_and_options_restrict_them() {
        assert_eq!(policy(&[]), SourcePolicy::default());
        assert_eq!(policy(&["--allow-sources", "data"]), SourcePolicy::data_only());
        let none = policy(&["--allow-sources", "none"]);
        assert!(none.files == FileAccess::None && none.urls == UrlAccess::None && !none.data);
        let below = policy(&["--allow-sources", "data", "--images-below", "photos"]);
        assert_eq!(below.files, FileAccess::Below("photos".into()));
        assert_eq!(below.urls, UrlAccess::None);
        assert_eq!(policy(&["--images-below", "photos"]).urls, UrlAccess::All);
        assert_eq!(policy(&["--allow-sources", "files,urls"]).urls, UrlAccess::All);
        assert!(Line::try_parse_from(["idefics", "--allow-sources", "ftp"]).is_err());
    }
}
