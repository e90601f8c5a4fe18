//! Downloads the files of one revision to the cache.

use std::{cell::Cell, collections::BTreeMap};

use crate::{
    HubError, HubProgress,
    cache::RepoCache,
    files::{OPTIONAL, PICKLED, SAFETENSORS, TOKENIZER, WeightFiles},
    id::is_commit,
    index::{MAX_INDEX_BYTES, bad_index, shard_names},
    remote::{Remote, synthetic_id},
    server::Server,
};

pub(crate) struct Download<'a> {
    pub(crate) server: &'a Server<'a>,
    pub(crate) cache: &'a RepoCache,
    /// A file that the revision is known to have.
    first: &'a str,
    /// The commit of the revision; `None` if the server does not send it. Without a commit, files in existing snapshots
    /// are not reused, and the new snapshot is named after a hash of its files.
    commit: Option<String>,
    /// Whether the server accepts the commit as the revision in its URLs; `None` until this is known.
    accepts_commit: Cell<Option<bool>>,
    /// The server's description of files that are missing from the snapshot.
    found: BTreeMap<String, Remote>,
    /// Files that are in the cache but not yet linked in the snapshot, with the names of their blobs.
    blobs: BTreeMap<String, String>,
    pub(crate) progress: &'a mut dyn FnMut(HubProgress),
    /// Number of bytes in the completed files.
    pub(crate) done: u64,
    /// Total size in bytes of all files to download, as far as the sizes are known.
    pub(crate) total: u64,
}

impl<'a> Download<'a> {
    /// Creates a download. `found` is the server's description of `first`, a file that the revision has.
    pub(crate) fn new(
        server: &'a Server<'a>,
        cache: &'a RepoCache,
        first: &'a str,
        found: Remote,
        progress: &'a mut dyn FnMut(HubProgress),
    ) -> Download<'a> {
        let commit = found.commit.clone().or_else(|| is_commit(server.revision).then(|| server.revision.to_owned()));
        let found = BTreeMap::from([(first.to_owned(), found)]);
        let accepts_commit = Cell::new((commit.as_deref() == Some(server.revision)).then_some(true));
        Download {
            server,
            cache,
            first,
            commit,
            accepts_commit,
            found,
            blobs: BTreeMap::new(),
            progress,
            done: 0,
            total: 0,
        }
    }

    /// Downloads the files that a model needs and links them in the snapshot. Returns the commit of the snapshot.
    pub(crate) fn model(mut self, formats: &[WeightFiles]) -> Result<String, HubError> {
        // The index comes first: if it lists a file that is not allowed, nothing else is downloaded.
        let weights = self.weights(formats)?;
        let files = vec![self.first.to_owned(), TOKENIZER.to_owned()];
        self.files(files, &OPTIONAL, weights)
    }

    /// Downloads `files`, `weights`, and those files of `optional` that the repository has, and links all of them in
    /// the snapshot. Returns the commit of the snapshot.
    pub(crate) fn files(
        mut self,
        mut files: Vec<String>,
        optional: &[&str],
        weights: Vec<String>,
    ) -> Result<String, HubError> {
        for file in optional {
            if self.is_in_repo(file)? {
                files.push((*file).to_owned());
            }
        }
        files.extend(weights);
        self.blobs(&files)?;

        let identity = || self.blobs.iter().flat_map(|(file, blob)| [file.as_str(), blob.as_str()]).collect::<Vec<_>>();
        let commit = self.commit.clone().unwrap_or_else(|| synthetic_id(&identity()));
        for (file, blob) in &self.blobs {
            self.cache.link(&commit, file, blob).map_err(|error| self.cache.read_only_error(file, error))?;
        }
        Ok(commit)
    }

    /// Returns the names of the weight files: a single file, or the shards and their index.
    fn weights(&mut self, formats: &[WeightFiles]) -> Result<Vec<String>, HubError> {
        for files in formats {
            if self.is_in_repo(files.single)? {
                return Ok(vec![files.single.to_owned()]);
            }
            if self.is_in_repo(files.index)? {
                return self.shards(files);
            }
        }
        for file in [PICKLED.single, PICKLED.index] {
            if self.is_in_repo(file)? {
                let (repo, revision) = (self.server.repo.to_owned(), self.server.revision.to_owned());
                return Err(HubError::PickleRefused { repo, revision, file });
            }
        }
        Err(self.server.file_not_found("model.safetensors (or model.safetensors.index.json)"))
    }

    /// Downloads the index. Returns the names of the shards and of the index.
    fn shards(&mut self, files: &WeightFiles) -> Result<Vec<String>, HubError> {
        self.blobs(&[files.index.to_owned()])?;
        let index = match (self.blobs.get(files.index), &self.commit) {
            (None, Some(commit)) => self.cache.file(commit, files.index),
            (blob, _) => self.cache.blob(blob.expect("without a commit, every file is downloaded to a blob")),
        };
        let mut names: Vec<String> = shard_names(&index, files, self.server.repo)?.into_iter().collect();
        names.push(files.index.to_owned());
        Ok(names)
    }

    /// Returns the revision to use in URLs. This is the commit, so that all files belong together even if the branch
    /// moves during the download. If the commit is unknown, or the server does not accept a commit in URLs, this is the
    /// revision that the caller gave.
    pub(crate) fn revision(&self) -> Result<&str, HubError> {
        let Some(commit) = &self.commit else { return Ok(self.server.revision) };
        if self.accepts_commit.get().is_none() {
            self.accepts_commit.set(Some(match self.server.look_up(commit, self.first, 3) {
                Err(HubError::RevisionNotFound { .. } | HubError::RepoNotFound { .. }) => false,
                found => found?.is_some(),
            }));
        }
        Ok(if self.accepts_commit.get() == Some(true) { commit } else { self.server.revision })
    }

    /// Returns whether the repository has the file, according to the snapshot or else the server. A commit never
    /// changes, so missing files are recorded in the cache.
    fn is_in_repo(&mut self, file: &str) -> Result<bool, HubError> {
        if self.found.contains_key(file) || self.blobs.contains_key(file) {
            return Ok(true);
        }
        if let Some(commit) = &self.commit
            && let Some(present) = self.cache.presence(commit, file)
        {
            return Ok(present);
        }
        match (self.server.look_up(self.revision()?, file, 3)?, &self.commit) {
            (Some(remote), _) => {
                self.found.insert(file.to_owned(), remote);
                return Ok(true);
            }
            (None, Some(commit)) => self.cache.write_no_exist(commit, file),
            (None, None) => {}
        }
        Ok(false)
    }

    /// Downloads the files that are missing from the snapshot. If the server lacks one of them, nothing is downloaded.
    fn blobs(&mut self, files: &[String]) -> Result<(), HubError> {
        let mut wanted = Vec::new();
        for file in files {
            if !self.is_in_repo(file)? {
                return Err(self.server.file_not_found(file));
            }
            let Some(remote) = self.found.remove(file) else { continue }; // the file is in the cache
            let index = [SAFETENSORS, PICKLED].into_iter().find(|files| files.index == file);
            if let Some(files) = index.filter(|_| remote.size.is_some_and(|size| size > MAX_INDEX_BYTES)) {
                return Err(bad_index(self.server.repo, &files, "it is larger than 64 MiB"));
            }
            self.total += remote.size.unwrap_or(0);
            wanted.push((file, remote));
        }
        for (file, remote) in wanted {
            self.blob(file, &remote).map_err(|error| self.cache.read_only_error(file, error))?;
            self.done += remote.size.unwrap_or(0);
            self.blobs.insert(file.clone(), remote.blob);
        }
        Ok(())
    }
}
