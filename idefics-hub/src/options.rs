//! Options of downloads, with defaults from the environment variables of `huggingface_hub`.

use std::{
    env, fmt, fs,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use crate::HubError;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// The server, cache and credentials used by [`fetch_with`](crate::fetch_with).
#[derive(Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// Base URL of the hub or of a mirror (`HF_ENDPOINT`).
    pub endpoint: String,
    /// Folder of the hub cache (`HF_HUB_CACHE`).
    pub cache_dir: PathBuf,
    /// Access token (`HF_TOKEN`). It is sent only to the host of the endpoint.
    pub token: Option<String>,
    /// Whether to use only the cache and never the network (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Whether to download PyTorch files if a repository has no safetensors.
    pub allow_pickles: bool,
    /// A flag that cancels the download when it is set. The download then ends within a tenth of a second. The next
    /// download resumes after the bytes received so far.
    pub cancel: Arc<AtomicBool>,
}

/// Shows the options, but hides the token.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .field("allow_pickles", &self.allow_pickles)
            .field("cancel", &self.cancel)
            .finish()
    }
}

impl HubOptions {
    /// Creates options with the given server and cache, online, without a token, and without PyTorch files.
    pub fn new(endpoint: impl Into<String>, cache_dir: impl Into<PathBuf>) -> HubOptions {
        HubOptions {
            endpoint: endpoint.into(),
            cache_dir: cache_dir.into(),
            token: None,
            offline: false,
            allow_pickles: false,
            cancel: Arc::default(),
        }
    }

    /// Creates options from the hub's environment variables.
    ///
    /// - cache: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub`,
    ///   `~/.cache/huggingface/hub`
    /// - token: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`; then, unless `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set, the file
    ///   `HF_TOKEN_PATH`, or else `token` in the hub's home folder
    /// - endpoint and offline mode: `HF_ENDPOINT`, `HF_HUB_OFFLINE`
    ///
    /// For the cache and the token, the first variable that is set is used. Empty variables count as not set.
    ///
    /// # Errors
    /// [`HubError::NoCacheFolder`] if no variable sets the cache and there is no home folder.
    pub fn from_env() -> Result<HubOptions, HubError> {
        let folder = |name| variable(name).map(|path| expand_home(&path));
        let home = folder("HF_HOME")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| env::home_dir().map(|home| home.join(".cache").join("huggingface")));
        let cache_dir = folder("HF_HUB_CACHE")
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .ok_or(HubError::NoCacheFolder)?;
        let stored_token = || {
            if is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                return None;
            }
            let path = folder("HF_TOKEN_PATH").or_else(|| home.as_ref().map(|home| home.join("token")))?;
            let token = fs::read_to_string(path).ok()?.trim().to_owned();
            (!token.is_empty()).then_some(token)
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(stored_token);
        Ok(HubOptions { token, offline: is_set("HF_HUB_OFFLINE"), ..HubOptions::new(endpoint, cache_dir) })
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn is_set(name: &str) -> bool {
    variable(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str()))
}

pub(crate) fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), env::home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(path),
    }
}
