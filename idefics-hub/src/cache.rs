//! Reads and writes the hub cache. The README shows the layout of the cache.

use std::{
    fs::{self, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    HubError,
    error::{file_system, is_read_only},
    files::{CONFIG, SAFETENSORS, TOKENIZER, WeightFiles},
    id::is_commit,
    index::shard_names,
};

/// The part of the hub cache that belongs to one repository.
pub(crate) struct RepoCache {
    cache_dir: PathBuf,
    repo: String,
    /// Name of the repository's folder: `models--{org}--{name}`.
    folder: String,
}

impl RepoCache {
    pub(crate) fn new(cache_dir: &Path, repo: &str) -> RepoCache {
        let folder = format!("models--{}", repo.replace('/', "--"));
        RepoCache { cache_dir: cache_dir.to_owned(), repo: repo.to_owned(), folder }
    }

    fn root(&self) -> PathBuf {
        self.cache_dir.join(&self.folder)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root().join("snapshots").join(commit)
    }

    pub(crate) fn file(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file)
    }

    pub(crate) fn blob(&self, name: &str) -> PathBuf {
        self.root().join("blobs").join(name)
    }

    fn no_exist(&self, commit: &str, file: &str) -> PathBuf {
        self.root().join(".no_exist").join(commit).join(file)
    }

    /// Returns whether the commit has the file; `None` if the cache does not know.
    pub(crate) fn presence(&self, commit: &str, file: &str) -> Option<bool> {
        if has_contents(&self.file(commit, file)) {
            Some(true)
        } else {
            self.no_exist(commit, file).exists().then_some(false)
        }
    }

    /// Returns the snapshot folder of a revision, if it contains all files that a model needs.
    pub(crate) fn complete_snapshot(&self, revision: &str, formats: &[WeightFiles]) -> Result<PathBuf, HubError> {
        let commit = self.known_commit(revision)?;
        let has = |file: &str| has_contents(&self.file(&commit, file));
        let mut needed = vec![CONFIG.to_owned(), TOKENIZER.to_owned()];
        match formats.iter().find(|files| has(files.single) || has(files.index)) {
            Some(files) if !has(files.single) => {
                needed.extend(shard_names(&self.file(&commit, files.index), files, &self.repo)?);
            }
            found => needed.push(found.unwrap_or(&SAFETENSORS).single.to_owned()),
        }
        self.snapshot_with(revision, &needed)
    }

    /// Returns the snapshot folder of a revision, if the folder contains all files in `needed`.
    pub(crate) fn snapshot_with(&self, revision: &str, needed: &[String]) -> Result<PathBuf, HubError> {
        let commit = self.known_commit(revision)?;
        match needed.iter().find(|file| !has_contents(&self.file(&commit, file))) {
            Some(missing) => Err(self.not_cached(revision, missing)),
            None => Ok(self.snapshot(&commit)),
        }
    }

    /// Returns the commit of a revision, if the cache knows it.
    fn known_commit(&self, revision: &str) -> Result<String, HubError> {
        if is_commit(revision) {
            return Ok(revision.to_owned());
        }
        let known = fs::read_to_string(self.root().join("refs").join(revision)).unwrap_or_default();
        let known = Some(known.trim().to_owned()).filter(|known| is_commit(known));
        known.ok_or_else(|| self.not_cached(revision, "the revision"))
    }

    fn not_cached(&self, revision: &str, missing: &str) -> HubError {
        HubError::NotCached {
            repo: self.repo.clone(),
            revision: revision.to_owned(),
            missing: missing.to_owned(),
            cache_dir: self.cache_dir.clone(),
        }
    }

    /// Stores the commit of a branch or tag. Ignores errors, because a read-only cache works without this entry.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str) {
        let path = self.root().join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return;
        }
        let _ = write(&path, commit);
    }

    /// Stores that the commit does not have the file. Ignores errors, because a read-only cache works without this
    /// entry.
    pub(crate) fn write_no_exist(&self, commit: &str, file: &str) {
        let _ = write(&self.no_exist(commit, file), "");
    }

    /// Locks a blob, so that no other process downloads the same contents while the returned file is open. While
    /// another process holds the lock, `waiting` is called once a second. If `waiting` fails, the wait ends.
    ///
    /// If the lock file cannot be opened, for example because it belongs to another user, the partial file is locked
    /// instead. On file systems without locks, nothing is locked.
    pub(crate) fn lock(
        &self,
        blob: &str,
        part: &Path,
        waiting: &mut dyn FnMut() -> Result<(), HubError>,
    ) -> Result<fs::File, HubError> {
        let path = self.cache_dir.join(".locks").join(&self.folder).join(format!("{blob}.lock"));
        let open = |path: &Path| {
            create_parent(path)?;
            let file = fs::OpenOptions::new().append(true).create(true).open(path);
            file.map_err(|source| file_system("cannot write", path, source))
        };
        let file = open(&path).or_else(|_| open(part))?;
        for tries in 1_u32.. {
            match file.try_lock() {
                Ok(()) | Err(TryLockError::Error(_)) => break,
                Err(TryLockError::WouldBlock) if tries.is_multiple_of(10) => waiting()?,
                Err(TryLockError::WouldBlock) => {}
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(file)
    }

    /// Converts a permission error to the error for a file that is missing from a read-only cache. Other errors are
    /// returned unchanged.
    pub(crate) fn read_only_error(&self, file: &str, error: HubError) -> HubError {
        match error {
            HubError::FileSystem { path, source, .. } if is_read_only(&source) => HubError::ReadOnlyCache {
                repo: self.repo.clone(),
                file: file.to_owned(),
                cache_dir: self.cache_dir.clone(),
                path,
                source,
            },
            error => error,
        }
    }

    pub(crate) fn link(&self, commit: &str, file: &str, blob: &str) -> Result<(), HubError> {
        let (link, target) = (self.file(commit, file), self.blob(blob));
        let relative = Path::new("../../blobs").join(blob);
        if fs::read_link(&link).is_ok_and(|known| known == relative) {
            return Ok(());
        }
        create_parent(&link)?;
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => link_or_copy(&target, &relative, &link),
        }
        .map_err(|source| file_system("cannot write", &link, source))
    }
}

#[cfg(unix)]
fn link_or_copy(_blob: &Path, relative: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, link)
}

/// Creates a hard link or, if that fails, a copy. Symbolic links are not used, because on some systems only privileged
/// users can create them.
#[cfg(not(unix))]
fn link_or_copy(blob: &Path, _relative: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}

fn has_contents(path: &Path) -> bool {
    path.is_file() && !is_lfs_pointer(path)
}

/// Returns whether a file is a git-lfs pointer, the short text that git stores in place of a large file.
///
/// Source: <https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>.
pub(crate) fn is_lfs_pointer(path: &Path) -> bool {
    const START: &[u8] = b"version https://git-lfs.github.com/spec/";
    const MAX_BYTES: u64 = 1024;
    let is_short = fs::metadata(path).is_ok_and(|meta| meta.len() < MAX_BYTES);
    is_short && fs::read(path).is_ok_and(|content| content.starts_with(START))
}

pub(crate) fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().expect("every path in the cache has a parent");
    fs::create_dir_all(parent).map_err(|source| file_system("cannot create", parent, source))
}

fn write(path: &Path, text: &str) -> Result<(), HubError> {
    create_parent(path)?;
    fs::write(path, text).map_err(|source| file_system("cannot write", path, source))
}
