//! Fetches the files of a hub repository from the cache, or else from the server, and returns their folder.

use std::path::PathBuf;

use crate::{
    HubError, HubOptions, HubProgress,
    cache::RepoCache,
    download::Download,
    files::{CONFIG, OPTIONAL, TOKENIZER, gguf_parts, weight_files},
    id::{check_id, is_commit, is_plain_name},
    server::Server,
    worker,
};

const DEFAULT_REVISION: &str = "main";

/// Fetches the files of a model to the standard hub cache, and returns the snapshot folder.
///
/// Calls [`fetch_with`] with [`HubOptions::from_env`].
///
/// # Errors
/// The errors of [`fetch_with`], and [`HubError::NoCacheFolder`] if the folder of the cache is unknown.
pub fn fetch(repo: &str, revision: Option<&str>, progress: &mut dyn FnMut(HubProgress)) -> Result<PathBuf, HubError> {
    fetch_with(&HubOptions::from_env()?, repo, revision, progress)
}

/// Returns the snapshot folder of a model in the hub cache, if the cache has all files that a model needs. Does not use
/// the network.
///
/// `revision` is a branch, a tag or a commit; `None` means the branch `main`.
pub fn cached_snapshot(options: &HubOptions, repo: &str, revision: Option<&str>) -> Option<PathBuf> {
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    check_id(repo, revision).ok()?;
    let cache = RepoCache::new(&options.cache_dir, repo);
    cache.complete_snapshot(revision, weight_files(options.allow_pickles)).ok()
}

/// Fetches the files of a model to the hub cache, and returns the snapshot folder.
///
/// Only the files that a model needs are downloaded: the configuration, tokenizer, processor and template files, and
/// `model.safetensors` or the shards listed in `model.safetensors.index.json`. If the repository has no safetensors
/// and [`HubOptions::allow_pickles`] is set, the PyTorch files are downloaded instead.
///
/// Files in the cache are not downloaded again, and an interrupted download resumes where it stopped, in the same run
/// or a later one. A commit that is in the cache needs no network. For a branch or tag, one request asks for its
/// current commit. If the server cannot be reached, a complete snapshot in the cache is used instead. Two processes
/// do not download the same file at the same time: the second process waits ([`HubProgress::is_waiting`]).
///
/// If the contents of a file do not match the hash announced by the hub, the file is deleted and the call fails. A
/// read-only cache is sufficient if it has all files.
///
/// The download runs on a separate thread, so that [`HubOptions::cancel`] ends this call even if the server does not
/// respond. The abandoned thread ends at its next read from the network, or when that read times out, after at most a
/// minute.
///
/// # Errors
/// [`HubError::kind`] gives the category: `Network`, `NotFound`, `Unauthorized`, `FileSystem`, `Offline`, `Rejected`
/// (the index lists anything other than plain files of its format, the weights are pickles that are not allowed, or a
/// file is a git-lfs pointer), `Limit` or `Cancelled`.
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

/// Asks the server for the commit of the revision, and downloads the files that are missing from the cache. If the
/// server cannot be reached, returns the `cached` snapshot.
fn download(
    options: &HubOptions,
    repo: &str,
    revision: &str,
    cached: Result<PathBuf, HubError>,
    progress: &mut dyn FnMut(HubProgress),
) -> Result<PathBuf, HubError> {
    let cache = RepoCache::new(&options.cache_dir, repo);
    let server = Server::new(options, repo, revision);
    // If the cache has a complete snapshot, an unreachable server is asked only once.
    let attempts = if cached.is_ok() { 1 } else { 3 };
    let config = match server.look_up(revision, CONFIG, attempts) {
        Err(error) if error.is_transient() => return cached.map_err(|_| error),
        found => found?.ok_or_else(|| server.file_not_found(CONFIG))?,
    };
    let commit = Download::new(&server, &cache, CONFIG, config, progress).model(weight_files(options.allow_pickles))?;
    if !is_commit(revision) {
        cache.write_ref(revision, &commit);
    }
    Ok(cache.snapshot(&commit))
}

/// Fetches a GGUF file of a repository to the hub cache, and returns its path.
///
/// If `file` is the first of several parts, the other parts are fetched too. `mmproj` is the file of the vision tower.
/// Apart from these GGUF files, only the tokenizer, processor and template files are fetched. The cache is used in the
/// same way as by [`fetch_with`].
///
/// # Errors
/// The errors of [`fetch_with`], and [`HubError::GgufName`] if `file` or `mmproj` is not the name of a GGUF file in the
/// top folder of the repository.
pub fn fetch_gguf(
    options: &HubOptions,
    repo: &str,
    revision: Option<&str>,
    file: &str,
    mmproj: Option<&str>,
    progress: &mut dyn FnMut(HubProgress),
) -> Result<PathBuf, HubError> {
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    check_id(repo, revision)?;
    let is_gguf = |name: &&str| is_plain_name(name) && name.to_ascii_lowercase().ends_with(".gguf");
    if let Some(name) = [Some(file), mmproj].into_iter().flatten().find(|name| !is_gguf(name)) {
        return Err(HubError::GgufName { repo: repo.to_owned(), name: name.chars().take(200).collect() });
    }
    let files: Vec<String> = gguf_parts(file).into_iter().chain(mmproj.map(str::to_owned)).collect();
    let cache = RepoCache::new(&options.cache_dir, repo);
    let cached = cache.snapshot_with(revision, &files);
    if options.offline {
        return cached.map(|snapshot| snapshot.join(file));
    }
    if let Ok(snapshot) = &cached
        && is_commit(revision)
        && OPTIONAL.iter().chain([&TOKENIZER]).all(|file| cache.presence(revision, file).is_some())
    {
        return Ok(snapshot.join(file));
    }
    let (repo, revision, file) = (repo.to_owned(), revision.to_owned(), file.to_owned());
    let in_thread = options.clone();
    worker::run(&options.cancel, progress, move |progress| {
        let cache = RepoCache::new(&in_thread.cache_dir, &repo);
        let server = Server::new(&in_thread, &repo, &revision);
        let attempts = if cached.is_ok() { 1 } else { 3 };
        let found = match server.look_up(&revision, &file, attempts) {
            Err(error) if error.is_transient() => {
                return cached.map(|snapshot| snapshot.join(&file)).map_err(|_| error);
            }
            found => found?.ok_or_else(|| server.file_not_found(&file))?,
        };
        let optional: Vec<&str> = OPTIONAL.into_iter().chain([TOKENIZER]).collect();
        let commit = Download::new(&server, &cache, &file, found, progress).files(Vec::new(), &optional, files)?;
        if !is_commit(&revision) {
            cache.write_ref(&revision, &commit);
        }
        Ok(cache.snapshot(&commit).join(&file))
    })
}
