//! The contents of one file on their way into the cache.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use crate::{
    HubError, HubProgress,
    cache::{create_parent, is_lfs_pointer},
    digest::ContentsHash,
    download::Download,
    error::file_system,
    remote::Remote,
    retry::back_off,
    server::header,
};

/// Attempts in a row without one new byte after which a download is given up.
const MAX_FRUITLESS: u32 = 4;
const BUFFER_BYTES: usize = 256 << 10;
/// A server may give no version of its files. Files below this size are then downloaded on each call.
const SMALL_BYTES: u64 = 16 << 20;

impl Download<'_> {
    /// Downloads one file's contents, continuing an earlier attempt, and checks them against the hub's hash.
    pub(crate) fn blob(&mut self, file: &str, remote: &Remote) -> Result<(), HubError> {
        let blob = self.cache.blob(&remote.blob);
        let is_versioned = remote.is_versioned || remote.size.is_some_and(|size| size >= SMALL_BYTES);
        let is_here = || {
            let length = fs::metadata(&blob).map(|meta| meta.len());
            let has_size = length.is_ok_and(|length| remote.size.is_none_or(|size| size == length));
            is_versioned && has_size && !is_lfs_pointer(&blob)
        };
        if is_here() {
            return Ok(());
        }
        let part = self.cache.blob(&format!("{}.incomplete", remote.blob));
        create_parent(&part)?;
        let length = || fs::metadata(&part).map_or(0, |meta| meta.len());
        let cache = self.cache;
        let _lock = cache.lock(&remote.blob, &part, &mut || self.report(file, remote, length(), true))?;
        if is_here() {
            return Ok(()); // another process downloaded it meanwhile
        }

        let mut hash = ContentsHash::new(remote.digest, remote.size);
        let start = self.complete(file, remote, &part, &mut hash)?;
        let discard = || fs::remove_file(&part).map_err(|source| file_system("cannot remove", &part, source));
        if hash.verify().is_err() && start > 0 {
            // The wrong bytes may be those that an earlier attempt left.
            discard()?;
            self.complete(file, remote, &part, &mut hash)?;
        }
        if let Err((expected, found)) = hash.verify() {
            discard()?;
            return Err(self.server.wrong_contents(file, expected, found));
        }
        fs::rename(&part, &blob).map_err(|source| file_system("cannot write", &blob, source))
    }

    /// Attempts to download a file until all of it is in `part`, and hashes it. Returns the byte at which the last
    /// attempt started.
    fn complete(&mut self, file: &str, remote: &Remote, part: &Path, hash: &mut ContentsHash) -> Result<u64, HubError> {
        let length = || fs::metadata(part).map_or(0, |meta| meta.len());
        let (mut longest, mut fruitless) = (length(), 0);
        loop {
            let error = match self.attempt(file, remote, part, hash) {
                Ok(start) => return Ok(start),
                Err(error) => error,
            };
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
    }

    /// One request for what `part` lacks. Returns the byte at which it started.
    fn attempt(&mut self, file: &str, remote: &Remote, part: &Path, hash: &mut ContentsHash) -> Result<u64, HubError> {
        let failed = |source| file_system("cannot write", part, source);
        let mut options = fs::OpenOptions::new();
        let mut out = options.read(true).write(true).create(true).truncate(false).open(part).map_err(failed)?;
        let mut at = out.seek(SeekFrom::End(0)).map_err(failed)?;
        // Without a version and a size nothing tells whether what is here belongs to the start of the file.
        if !remote.is_versioned || remote.size.is_none_or(|size| at > size) {
            at = 0;
            out.set_len(0).map_err(failed)?;
        }
        if remote.size == Some(at) {
            self.catch_up(file, remote, (&mut out, part), at, hash)?;
            return Ok(at);
        }

        let answer = self.server.contents(self.revision()?, file, at)?;
        let (response, url) = (answer.response, answer.url);
        // The length of a compressed body is unknown, and a range of it is not one of the file.
        let is_continued = response.body().content_length().is_some()
            && header(&response, "content-range").is_some_and(|range| range.starts_with(&format!("bytes {at}-")));
        match response.status().as_u16() {
            206 if is_continued => {}
            200 => at = 0, // the whole file: the server does not resume
            206 | 416 => {
                out.set_len(0).map_err(failed)?;
                return Err(self.server.bad_response(file, url, "does not answer with the range that was asked for"));
            }
            _ => return Err(self.server.refusal(&response, file, url)),
        }
        // Gzip is decoded by the HTTP client, which then removes the header.
        if header(&response, "content-encoding").is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            return Err(self.server.bad_response(file, url, "sends an encoding that was not asked for"));
        }
        out.set_len(at).map_err(failed)?;
        self.catch_up(file, remote, (&mut out, part), at, hash)?;
        out.seek(SeekFrom::Start(at)).map_err(failed)?;

        let start = at;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            self.report(file, remote, at, false)?;
            let n_bytes = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n_bytes) => n_bytes,
                Err(source) => return Err(self.server.interrupted(file, url, at, source)),
            };
            let bytes = &buffer[..n_bytes];
            if at == 0 && is_web_page(bytes) {
                return Err(self.server.bad_response(file, url, "answers with a web page"));
            }
            out.write_all(bytes).map_err(failed)?;
            hash.update(bytes);
            at += n_bytes as u64;
            if remote.size.is_some_and(|size| at > size) {
                out.set_len(0).map_err(failed)?;
                return Err(self.server.bad_response(file, url, "sends more bytes than it announced"));
            }
        }
        if is_lfs_pointer(part) {
            out.set_len(0).map_err(failed)?;
            return Err(self.server.lfs_pointer(file, url));
        }
        if remote.size.is_some_and(|size| at < size) {
            return Err(self.server.interrupted(file, url, at, io::ErrorKind::UnexpectedEof.into()));
        }
        out.sync_all().map_err(failed)?;
        if let Some(second) = hash.second_pass() {
            *hash = second;
            self.catch_up(file, remote, (&mut out, part), at, hash)?;
        }
        Ok(start)
    }

    /// Hashes the bytes before `end` that were written by an earlier run.
    fn catch_up(
        &mut self,
        file: &str,
        remote: &Remote,
        (part, path): (&mut fs::File, &Path),
        end: u64,
        hash: &mut ContentsHash,
    ) -> Result<(), HubError> {
        let failed = |source| file_system("cannot read", path, source);
        if hash.position() > end {
            hash.restart();
        }
        if !hash.is_checked() || hash.position() == end {
            return Ok(());
        }
        part.seek(SeekFrom::Start(hash.position())).map_err(failed)?;
        let mut rest = part.take(end - hash.position());
        let mut buffer = vec![0; BUFFER_BYTES];
        while hash.position() < end {
            self.report(file, remote, end, false)?;
            match rest.read(&mut buffer).map_err(failed)? {
                0 => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                n_bytes => hash.update(&buffer[..n_bytes]),
            }
        }
        Ok(())
    }

    /// Tells the caller how far the file is, and ends the download if the caller cancelled it.
    fn report(&mut self, file: &str, remote: &Remote, at: u64, is_waiting: bool) -> Result<(), HubError> {
        self.server.check_cancelled()?;
        (self.progress)(HubProgress {
            file: file.to_owned(),
            file_done: at,
            file_total: remote.size,
            done: self.done + at,
            total: self.total.max(self.done + at),
            is_waiting,
        });
        Ok(())
    }
}

/// The login page of a network that is not open yet, or a site that answers everything with its front page.
fn is_web_page(start: &[u8]) -> bool {
    let start = start.trim_ascii_start();
    ["<!doctype html", "<html"]
        .iter()
        .any(|tag| start.get(..tag.len()).is_some_and(|it| it.eq_ignore_ascii_case(tag.as_bytes())))
}
