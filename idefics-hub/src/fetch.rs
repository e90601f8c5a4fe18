//! From a hub id to a folder: asks the cache, then the server.

use std::path::PathBuf;

use crate::{
    HubError, HubOptions, HubProgress,
    cache::RepoCache,
    download::Download,
    files::{CONFIG, OPTIONAL, weight_files},
    id::{check_id, is_commit},
    server::Server,
    worker,
};

const DEFAULT_REVISION: &str = "main";

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
/// Only what a model needs is downloaded: the configuration, tokenizer, processor and template files, and
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
    let cached = cache.complete_snapshot(revision, weight_files(options.allow_pickles));
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
    let commit = Download::new(&server, &cache, config, progress).model(weight_files(options.allow_pickles))?;
    if !is_commit(revision) {
        cache.write_ref(revision, &commit);
    }
    Ok(cache.snapshot(&commit))
}
