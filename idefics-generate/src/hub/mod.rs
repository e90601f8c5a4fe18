//! Model folders from the Hugging Face hub, through the standard hub cache.
//!
//! This is a client of the hub's file URLs and not the `hf-hub` crate, because an interrupted download of weights has to
//! go on where it stopped and what an error page says must never become a file. `hf-hub` 1.0 starts each download from
//! zero, stores the body of an answer without a look at its status, always goes through Xet when that is offered, and
//! has no timeouts; 0.5 appends to a partial file even if the server ignores the range and sends all of it.
//!
//! With `huggingface_hub` it shares the environment variables `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`,
//! `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and `HF_HUB_DISABLE_IMPLICIT_TOKEN` (see [`HubOptions::from_env`]), and the cache
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>):
//!
//! ```text
//! {cache}/models--{org}--{name}/refs/{revision}             the commit that a branch or a tag stood at
//!                               snapshots/{commit}/{file}   links to blobs; this folder is what is returned
//!                               blobs/{etag}[.incomplete]   contents, and what has come of an interrupted download
//!                               .no_exist/{commit}/{file}   files that the commit is known not to have
//! {cache}/.locks/models--{org}--{name}/{etag}.lock
//! ```
//!
//! `refs` is written last, so a branch never points at a snapshot that is still incomplete. A cache that cannot be
//! written will do if it has all files: `refs`, `.no_exist` and `.locks` are then left as they are. Servers that know
//! nothing but the file URLs will do; `server.rs` says what stands in for the rest.
//!
//! Every download is checked before it is used, while it comes: against the SHA-256 that the hub gives in
//! `X-Linked-ETag` or `ETag` (64 hexadecimal digits, files in LFS or Xet storage), or against the SHA-1 of the git blob
//! in `ETag` (40 digits, all others). Mirrors that give the SHA-1 of the contents alone pass too. Weak tags (`W/`) are
//! checked like strong ones. Tags of another form, and all tags of servers without `X-Repo-Commit` and
//! `X-Linked-ETag`, are not taken for hashes.

mod blob;
mod cache;
mod digest;
mod download;
mod error;
mod index;
mod options;
mod server;
mod worker;

use std::path::{Path, PathBuf};

use idefics_nn::checkpoint::Pickles;

pub use error::{HubError, HubErrorKind};
pub use options::HubOptions;

use {cache::RepoCache, download::Download, options::expand_home, server::Server};

/// Brings the files that a model folder may have into the standard hub cache, and returns the snapshot folder.
///
/// [`fetch_with`] under the environment's options.
///
/// # Errors
/// As [`fetch_with`], and [`HubError::NoCacheFolder`].
pub fn fetch(repo: &str, revision: Option<&str>, progress: &mut dyn FnMut(HubProgress)) -> Result<PathBuf, HubError> {
    fetch_with(&HubOptions::from_env()?, repo, revision, progress)
}

/// Brings the files that a model folder may have into the hub cache, and returns the snapshot folder.
///
/// Only what [`crate`] reads is downloaded: the configuration, tokenizer, processor and template files, and
/// `model.safetensors` or the shards that `model.safetensors.index.json` names, or, where a repository has neither and
/// they are allowed, PyTorch's files. What the cache has is not downloaded again, and an interrupted file goes on where
/// it stopped, in this run or in a later one. A revision that is a commit and is in the cache needs no network; for a
/// branch or a tag the server is asked once where it stands, and when it cannot be reached a complete snapshot in the
/// cache is taken instead. Two processes do not download the same file:
/// the second one waits ([`HubProgress::is_waiting`]).
///
/// A file whose contents do not have the hash that the hub announces is an error, and nothing of it is kept. A cache
/// that cannot be written will do if it has all files.
///
/// The download runs on a thread of its own, so that [`HubOptions::cancel`] ends this call even while the server does not
/// answer; the thread then ends with its next read, at the latest after a minute.
///
/// # Errors
/// [`HubError::kind`] sorts them: `Network`, `NotFound`, `Unauthorized`, `FileSystem`, `Offline`, `Rejected` for an
/// index that does not name plain files of its format, or a repository of PyTorch files that were not allowed, and
/// `Cancelled`.
pub fn fetch_with(
    options: &HubOptions,
    repo: &str,
    revision: Option<&str>,
    progress: &mut dyn FnMut(HubProgress),
) -> Result<PathBuf, HubError> {
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    check_id(repo, revision)?;
    let cache = RepoCache::new(&options.cache_dir, repo);
    let cached = cache.complete_snapshot(revision, weight_files(options.pickles));
    if options.offline {
        return cached;
    }
    if let Ok(snapshot) = &cached
        && is_commit(revision)
        && OPTIONAL.iter().all(|file| cache.presence(revision, file).is_some())
    {
        return Ok(snapshot.clone());
    }
    let (repo, revision) = (repo.to_owned(), revision.to_owned());
    let in_thread = options.clone();
    worker::run(&options.cancel, progress, move |progress| download(&in_thread, &repo, &revision, cached, progress))
}

/// Asks the server where the revision stands, and downloads what the cache lacks. If the server cannot be reached, the
/// `cached` snapshot is taken.
fn download(
    options: &HubOptions,
    repo: &str,
    revision: &str,
    cached: Result<PathBuf, HubError>,
    progress: &mut dyn FnMut(HubProgress),
) -> Result<PathBuf, HubError> {
    let cache = RepoCache::new(&options.cache_dir, repo);
    let server = Server::new(options, repo, revision);
    // With a snapshot at hand an unreachable server is no reason to wait.
    let attempts = if cached.is_ok() { 1 } else { 3 };
    let config = match server.look_up(revision, CONFIG, attempts) {
        Err(error) if error.is_transient() => return cached.map_err(|_| error),
        found => found?.ok_or_else(|| server.file_not_found(CONFIG))?,
    };
    let commit = Download::new(&server, &cache, config, progress).model(weight_files(options.pickles))?;
    if !is_commit(revision) {
        cache.write_ref(revision, &commit);
    }
    Ok(cache.snapshot(&commit))
}

const DEFAULT_REVISION: &str = "main";

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";

/// The files of weights in one format.
struct WeightFiles {
    /// The one file, where there is one.
    single: &'static str,
    /// Which names the shards, where there are several.
    index: &'static str,
    /// What the shards' names end in.
    ending: &'static str,
}

const SAFETENSORS: WeightFiles =
    WeightFiles { single: "model.safetensors", index: "model.safetensors.index.json", ending: ".safetensors" };
const PICKLED: WeightFiles =
    WeightFiles { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json", ending: ".bin" };

/// The formats that are taken, the first that a repository has.
fn weight_files(pickles: Pickles) -> &'static [WeightFiles] {
    match pickles {
        Pickles::Refused => &[SAFETENSORS],
        Pickles::Allowed => &[SAFETENSORS, PICKLED],
    }
}

/// What a folder may have besides its configuration, its tokenizer and its weights.
const OPTIONAL: [&str; 8] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// Where a model is: a folder, or a repository of the Hugging Face hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// A model folder on this machine.
    Folder(PathBuf),
    /// A repository of the hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// A branch, a tag or a commit; the branch `main` when not given.
        revision: Option<String>,
    },
}

impl ModelSource {
    /// Reads the value of `--model`.
    ///
    /// What exists is a folder, as is whatever looks like a path: it starts with `.`, `/` or `~`, holds a backslash,
    /// or has not exactly one `/` before the first `@`. All else is `org/name[@revision]`. A leading `~/` becomes the
    /// home folder.
    pub fn parse(source: &str) -> ModelSource {
        let (repo, revision) = match source.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision.to_owned())),
            None => (source, None),
        };
        let path_like = source.starts_with(['.', '/', '~']) || source.contains('\\') || repo.matches('/').count() != 1;
        if path_like || Path::new(source).exists() {
            ModelSource::Folder(expand_home(source))
        } else {
            ModelSource::Hub { repo: repo.to_owned(), revision }
        }
    }
}

/// How far a download is. Bytes that an earlier, interrupted run left count as done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubProgress {
    /// The file that is downloaded now, relative to the repository.
    pub file: String,
    /// Bytes of this file that are here.
    pub file_done: u64,
    /// Bytes of this file, when the server says how many.
    pub file_total: Option<u64>,
    /// Bytes of all files to download that are here; files that the cache had before are not counted.
    pub done: u64,
    /// Bytes of all files to download. A sharded checkpoint's index is downloaded first, and until then the shards
    /// are not in it.
    pub total: u64,
    /// Another process downloads this file, and this one waits for it: said once a second.
    pub is_waiting: bool,
}

fn check_id(repo: &str, revision: &str) -> Result<(), HubError> {
    let parts: Vec<&str> = repo.split('/').collect();
    let repo_is_valid = parts.len() == 2 && parts.iter().all(|part| is_plain_name(part) && !part.contains(".."));
    // A revision becomes a path below `refs`.
    let revision_is_valid = revision.len() <= 255
        && revision
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', ':', '\0', '\n', '\r']));
    if repo_is_valid && revision_is_valid {
        return Ok(());
    }
    Err(HubError::InvalidId { id: format!("{repo}@{revision}").chars().take(200).collect() })
}

/// `[A-Za-z0-9._-]{1,255}`, not hidden.
fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=255).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.')
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
