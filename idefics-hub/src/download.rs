//! The files of one revision on their way into the cache.

use std::{cell::Cell, collections::BTreeMap};

use crate::{
    HubError, HubProgress,
    cache::RepoCache,
    files::{CONFIG, OPTIONAL, PICKLED, SAFETENSORS, TOKENIZER, WeightFiles},
    id::is_commit,
    index::{MAX_INDEX_BYTES, bad_index, shard_names},
    remote::{Remote, stand_in},
    server::Server,
};

pub(crate) struct Download<'a> {
    pub(crate) server: &'a Server<'a>,
    pub(crate) cache: &'a RepoCache,
    /// `None` while the server does not say: then the cache is not asked, and the files decide at the end.
    commit: Option<String>,
    /// Whether the server's URLs may name the commit, once that is known.
    knows_commit: Cell<Option<bool>>,
    /// What the server has said of files that the snapshot lacks.
    found: BTreeMap<String, Remote>,
    /// Files that are in the cache but not yet in the snapshot, and the names of their blobs.
    blobs: BTreeMap<String, String>,
    pub(crate) progress: &'a mut dyn FnMut(HubProgress),
    /// Bytes of the files that are complete.
    pub(crate) done: u64,
    /// Bytes of all files to download, as far as they are known.
    pub(crate) total: u64,
}

impl<'a> Download<'a> {
    pub(crate) fn new(
        server: &'a Server<'a>,
        cache: &'a RepoCache,
        config: Remote,
        progress: &'a mut dyn FnMut(HubProgress),
    ) -> Download<'a> {
        let commit = config.commit.clone().or_else(|| is_commit(server.revision).then(|| server.revision.to_owned()));
        let found = BTreeMap::from([(CONFIG.to_owned(), config)]);
        let knows_commit = Cell::new((commit.as_deref() == Some(server.revision)).then_some(true));
        Download { server, cache, commit, knows_commit, found, blobs: BTreeMap::new(), progress, done: 0, total: 0 }
    }

    /// Downloads what a model needs and returns the commit whose snapshot then holds it.
    pub(crate) fn model(mut self, formats: &[WeightFiles]) -> Result<String, HubError> {
        // The index comes before all else: what it names decides whether anything is downloaded at all.
        let weights = self.weights(formats)?;
        let mut files = vec![CONFIG.to_owned(), TOKENIZER.to_owned()];
        for file in OPTIONAL {
            if self.is_in_repo(file)? {
                files.push(file.to_owned());
            }
        }
        files.extend(weights);
        self.blobs(&files)?;

        let identity = || self.blobs.iter().flat_map(|(file, blob)| [file.as_str(), blob.as_str()]).collect::<Vec<_>>();
        let commit = self.commit.clone().unwrap_or_else(|| stand_in(&identity()));
        for (file, blob) in &self.blobs {
            self.cache.link(&commit, file, blob).map_err(|error| self.cache.lacks(file, error))?;
        }
        Ok(commit)
    }

    /// The one file of weights, or the index and the shards that it names.
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

    /// The index and the shards that it names.
    fn shards(&mut self, files: &WeightFiles) -> Result<Vec<String>, HubError> {
        self.blobs(&[files.index.to_owned()])?;
        let index = match (self.blobs.get(files.index), &self.commit) {
            (None, Some(commit)) => self.cache.file(commit, files.index),
            (blob, _) => self.cache.blob(blob.expect("without a commit all files go through blobs")),
        };
        let mut names: Vec<String> = shard_names(&index, files, self.server.repo)?.into_iter().collect();
        names.push(files.index.to_owned());
        Ok(names)
    }

    /// What URLs name: the commit, so that a branch that moves meanwhile mixes nothing, or the branch at a server that
    /// tells the commit and does not answer to it.
    pub(crate) fn revision(&self) -> Result<&str, HubError> {
        let Some(commit) = &self.commit else { return Ok(self.server.revision) };
        if self.knows_commit.get().is_none() {
            self.knows_commit.set(Some(match self.server.look_up(commit, CONFIG, 3) {
                Err(HubError::RevisionNotFound { .. } | HubError::RepoNotFound { .. }) => false,
                found => found?.is_some(),
            }));
        }
        Ok(if self.knows_commit.get() == Some(true) { commit } else { self.server.revision })
    }

    /// Asks the snapshot, then the server; a commit's files never change, so "no" is remembered.
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

    /// Downloads those of the files that the snapshot lacks, once it is known that the server has them all.
    fn blobs(&mut self, files: &[String]) -> Result<(), HubError> {
        let mut wanted = Vec::new();
        for file in files {
            if !self.is_in_repo(file)? {
                return Err(self.server.file_not_found(file));
            }
            let Some(remote) = self.found.remove(file) else { continue }; // it is here
            let index = [SAFETENSORS, PICKLED].into_iter().find(|files| files.index == file);
            if let Some(files) = index.filter(|_| remote.size.is_some_and(|size| size > MAX_INDEX_BYTES)) {
                return Err(bad_index(self.server.repo, &files, "it is larger than 64 MiB"));
            }
            self.total += remote.size.unwrap_or(0);
            wanted.push((file, remote));
        }
        for (file, remote) in wanted {
            self.blob(file, &remote).map_err(|error| self.cache.lacks(file, error))?;
            self.done += remote.size.unwrap_or(0);
            self.blobs.insert(file.clone(), remote.blob);
        }
        Ok(())
    }
}
