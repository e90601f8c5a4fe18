//! Downloads the contents of one file to the cache.

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

/// A download fails after this many consecutive attempts without progress.
const MAX_FRUITLESS: u32 = 4;
const BUFFER_BYTES: usize = 256 << 10;
/// If the server sends no version of a file, a file below this size is downloaded on every call.
const SMALL_BYTES: u64 = 16 << 20;

impl Download<'_> {
    /// Downloads the contents of one file, resuming an earlier attempt, and verifies them against the hub's hash.
    pub(crate) fn blob(&mut self, file: &str, remote: &Remote) -> Result<(), HubError> {
        let blob = self.cache.blob(&remote.blob);
        let is_versioned = remote.is_versioned || remote.size.is_some_and(|size| size >= SMALL_BYTES);
        let is_complete = || {
            let length = fs::metadata(&blob).map(|meta| meta.len());
            let has_size = length.is_ok_and(|length| remote.size.is_none_or(|size| size == length));
            is_versioned && has_size && !is_lfs_pointer(&blob)
        };
        if is_complete() {
            return Ok(());
        }
        let part = self.cache.blob(&format!("{}.incomplete", remote.blob));
        create_parent(&part)?;
        let length = || fs::metadata(&part).map_or(0, |meta| meta.len());
        let cache = self.cache;
        let _lock = cache.lock(&remote.blob, &part, &mut || self.report(file, remote, length(), true))?;
        if is_complete() {
            return Ok(()); // another process downloaded it in the meantime
        }

        let mut hash = ContentsHash::new(remote.digest, remote.size);
        let start = self.complete(file, remote, &part, &mut hash)?;
        let discard = || fs::remove_file(&part).map_err(|source| file_system("cannot remove", &part, source));
        if hash.verify().is_err() && start > 0 {
            // The wrong bytes may come from an earlier attempt, so the whole file is downloaded once more.
            discard()?;
            self.complete(file, remote, &part, &mut hash)?;
        }
        if let Err((expected, found)) = hash.verify() {
            discard()?;
            return Err(self.server.wrong_contents(file, expected, found));
        }
        fs::rename(&part, &blob).map_err(|source| file_system("cannot write", &blob, source))
    }

    /// Repeats the request until `part` contains the whole file, and hashes the file. Returns the offset at which the
    /// last attempt started.
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

    /// Requests the bytes that are missing from `part`, and appends them. Returns the offset at which the response
    /// started.
    fn attempt(&mut self, file: &str, remote: &Remote, part: &Path, hash: &mut ContentsHash) -> Result<u64, HubError> {
        let failed = |source| file_system("cannot write", part, source);
        let mut options = fs::OpenOptions::new();
        let mut out = options.read(true).write(true).create(true).truncate(false).open(part).map_err(failed)?;
        let mut at = out.seek(SeekFrom::End(0)).map_err(failed)?;
        // Start over if `part` may hold bytes of other contents: if the file has no version, if its size is unknown, or
        // if `part` is longer than the file.
        if !remote.is_versioned || remote.size.is_none_or(|size| at > size) {
            at = 0;
            out.set_len(0).map_err(failed)?;
        }
        if remote.size == Some(at) {
            self.hash_existing(file, remote, (&mut out, part), at, hash)?;
            return Ok(at);
        }

        let answer = self.server.contents(self.revision()?, file, at)?;
        let (response, url) = (answer.response, answer.url);
        // Resume only if the body is not compressed, because the range must refer to the bytes of the file. The length
        // of a compressed body is not known.
        let is_continued = response.body().content_length().is_some()
            && header(&response, "content-range").is_some_and(|range| range.starts_with(&format!("bytes {at}-")));
        match response.status().as_u16() {
            206 if is_continued => {}
            200 => at = 0, // the server ignored the range and sends the whole file
            206 | 416 => {
                out.set_len(0).map_err(failed)?;
                return Err(self.server.bad_response(file, url, "did not send the requested range"));
            }
            _ => return Err(self.server.refusal(&response, file, url)),
        }
        // The HTTP client decodes gzip and removes the header. Any other encoding is an error.
        if header(&response, "content-encoding").is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            return Err(self.server.bad_response(file, url, "used a content encoding that was not requested"));
        }
        out.set_len(at).map_err(failed)?;
        self.hash_existing(file, remote, (&mut out, part), at, hash)?;
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
                return Err(self.server.bad_response(file, url, "sent a web page"));
            }
            out.write_all(bytes).map_err(failed)?;
            hash.update(bytes);
            at += n_bytes as u64;
            if remote.size.is_some_and(|size| at > size) {
                out.set_len(0).map_err(failed)?;
                return Err(self.server.bad_response(file, url, "sent more bytes than it announced"));
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
            self.hash_existing(file, remote, (&mut out, part), at, hash)?;
        }
        Ok(start)
    }

    /// Adds the bytes of `part` before offset `end` to `hash`, except those that are already hashed.
    fn hash_existing(
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

    /// Reports the progress to the caller, or fails if the caller cancelled the download.
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

/// Returns whether a body starts like an HTML page. Captive portals send a login page instead of a file, and some sites
/// answer every request with their front page.
fn is_web_page(start: &[u8]) -> bool {
    let start = start.trim_ascii_start();
    ["<!doctype html", "<html"]
        .iter()
        .any(|tag| start.get(..tag.len()).is_some_and(|it| it.eq_ignore_ascii_case(tag.as_bytes())))
}
