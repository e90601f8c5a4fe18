//! Warnings about a processor folder.

use std::path::PathBuf;

/// Something wrong with a folder that can be used all the same; [`Processor::warnings`](crate::Processor::warnings).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorWarning {
    /// Keys of the image processor's configuration that change nothing, in the reference neither; see
    /// [`ImageProcessorConfig::ignored_keys`](crate::image::ImageProcessorConfig::ignored_keys).
    #[error("{}: this image processor ignores {}", path.display(), list(keys))]
    IgnoredImageKeys {
        /// The file.
        path: PathBuf,
        /// The keys.
        keys: Vec<String>,
    },
}

/// Names in backticks, with commas.
fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{}`", crate::checkpoint::shorten(name))).collect::<Vec<_>>().join(", ")
}
