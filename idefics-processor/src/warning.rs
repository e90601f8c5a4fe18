//! Warnings about a checkpoint folder.

use std::path::PathBuf;

/// A problem in a checkpoint folder that does not prevent its use; returned by
/// [`Processor::warnings`](crate::Processor::warnings).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorWarning {
    /// The image processor's configuration has keys without effect. The reference ignores them too. See
    /// [`ImageProcessorConfig::ignored_keys`](crate::image::ImageProcessorConfig::ignored_keys).
    #[error("{}: the image processor ignores {}", path.display(), list(keys))]
    IgnoredImageKeys {
        /// Path of the configuration file.
        path: PathBuf,
        /// The ignored keys.
        keys: Vec<String>,
    },
}

/// Joins the names, each in backticks, with commas.
fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{}`", crate::checkpoint::shorten(name))).collect::<Vec<_>>().join(", ")
}
