//! The files of one revision on their way into the cache.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    thread,
    time::Duration,
};

use super::{
    CONFIG, HubError, HubProgress, OPTIONAL, PICKLED, SAFETENSORS, TOKENIZER, WeightFiles,
    cache::{RepoCache, create_parent},
    error::file_system,
    index::{MAX_INDEX_BYTES, bad_index, shard_names},
    is_commit,
    server::{Remote, Server, header, stand_in},
};

/// Attempts in a row that bring not one new byte before a download is given up.
const MAX_FRUITLESS: u32 = 4;
const BUFFER_BYTES: usize = 256 << 10;
/// From a server that cannot tell one version of a file from another, what is smaller than this is read each time.
const SMALL_BYTES: u64 = 16 << 20;

pub(super) struct Download<'a> {
    server: &'a Server<'a>,
    cache: &'a RepoCache,
    /// `None` while the server does not say: then the cache is not asked, and the files decide at the end.
    commit: Option<String>,
    /// Whether the server's URLs may name the commit, once that is known.
    knows_commit: Cell<Option<bool>>,
    /// What the server has said of files that the snapshot lacks.
    found: BTreeMap<String, Remote>,
    /// Files that are in the cache but not yet in the snapshot, and the names of their blobs.
    blobs: BTreeMap<String, String>,
    progress: &'a mut dyn FnMut(HubProgress),
    done: u64,
    total: u64,
}

impl<'a> Download<'a> {
    pub(super) fn new(
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
    pub(super) fn model(mut self, formats: &[WeightFiles]) -> Result<String, HubError> {
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
            self.cache.link(&commit, file, blob)?;
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
    fn revision(&self) -> Result<&str, HubError> {
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
            (None, Some(commit)) => self.cache.write_no_exist(commit, file)?,
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
            self.blob(file, &remote)?;
            self.done += remote.size.unwrap_or(0);
            self.blobs.insert(file.clone(), remote.blob);
        }
        Ok(())
    }

    /// Downloads one file's contents, going on where an earlier attempt stopped.
    fn blob(&mut self, file: &str, remote: &Remote) -> Result<(), HubError> {
        let blob = self.cache.blob(&remote.blob);
        let is_told_apart = remote.is_versioned || remote.size.is_some_and(|size| size >= SMALL_BYTES);
        let is_here = || {
            let length = fs::metadata(&blob).map(|meta| meta.len());
            is_told_apart && length.is_ok_and(|length| remote.size.is_none_or(|size| size == length))
        };
        if is_here() {
            return Ok(());
        }
        let part = self.cache.blob(&format!("{}.incomplete", remote.blob));
        create_parent(&part)?;
        let length = || fs::metadata(&part).map_or(0, |meta| meta.len());
        let cache = self.cache;
        let _lock = cache.lock(&remote.blob, &mut || self.report(file, remote, length(), true))?;
        if is_here() {
            return Ok(()); // another process downloaded it meanwhile
        }
        let (mut longest, mut fruitless) = (length(), 0);
        while let Err(error) = self.attempt(file, remote, &part) {
            if length() > longest {
                (longest, fruitless) = (length(), 0);
            } else {
                fruitless += 1;
            }
            if !error.is_transient() || fruitless >= MAX_FRUITLESS {
                return Err(error);
            }
            back_off(fruitless);
        }
        fs::rename(&part, &blob).map_err(|source| file_system("cannot write", &blob, source))
    }

    fn attempt(&mut self, file: &str, remote: &Remote, part: &Path) -> Result<(), HubError> {
        let failed = |source| file_system("cannot write", part, source);
        let mut out = fs::OpenOptions::new().write(true).create(true).truncate(false).open(part).map_err(failed)?;
        let mut at = out.seek(SeekFrom::End(0)).map_err(failed)?;
        // Without a version and a size nothing tells whether what is here belongs to the start of the file.
        if !remote.is_versioned || remote.size.is_none_or(|size| at > size) {
            at = 0;
            out.set_len(0).map_err(failed)?;
        }
        if remote.size == Some(at) {
            return Ok(());
        }

        let answer = self.server.contents(self.revision()?, file, at)?;
        let (response, url) = (answer.response, answer.url);
        let resumed =
            header(&response, "content-range").is_some_and(|range| range.starts_with(&format!("bytes {at}-")));
        match response.status().as_u16() {
            206 if resumed => {}
            200 => at = 0, // the whole file: the server does not resume
            206 | 416 => {
                out.set_len(0).map_err(failed)?;
                return Err(self.server.bad_response(file, url, "does not answer with the range that was asked for"));
            }
            _ => return Err(self.server.refusal(&response, file, url)),
        }
        out.set_len(at).map_err(failed)?;
        out.seek(SeekFrom::Start(at)).map_err(failed)?;

        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            self.report(file, remote, at, false);
            let n_bytes = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n_bytes) => n_bytes,
                Err(source) => return Err(self.server.interrupted(file, url, at, source)),
            };
            if at == 0 && is_web_page(&buffer[..n_bytes]) {
                return Err(self.server.bad_response(file, url, "answers with a web page"));
            }
            out.write_all(&buffer[..n_bytes]).map_err(failed)?;
            at += n_bytes as u64;
            if remote.size.is_some_and(|size| at > size) {
                out.set_len(0).map_err(failed)?;
                return Err(self.server.bad_response(file, url, "sends more bytes than it announced"));
            }
        }
        if remote.size.is_some_and(|size| at < size) {
            return Err(self.server.interrupted(file, url, at, io::ErrorKind::UnexpectedEof.into()));
        }
        out.sync_all().map_err(failed)
    }

    fn report(&mut self, file: &str, remote: &Remote, at: u64, is_waiting: bool) {
        (self.progress)(HubProgress {
            file: file.to_owned(),
            file_done: at,
            file_total: remote.size,
            done: self.done + at,
            total: self.total.max(self.done + at),
            is_waiting,
        });
    }
}

/// The login page of a network that is not open yet, or a site that answers everything with its front page.
fn is_web_page(start: &[u8]) -> bool {
    let start = start.trim_ascii_start();
    ["<!doctype html", "<html"]
        .iter()
        .any(|tag| start.get(..tag.len()).is_some_and(|it| it.eq_ignore_ascii_case(tag.as_bytes())))
}

/// 0.1 s, doubled each time.
pub(super) fn back_off(attempt: u32) {
    thread::sleep(Duration::from_millis(100 << attempt.min(6)));
}
