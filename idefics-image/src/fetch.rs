//! Fetches images from `http(s)` URLs.

use url::Url;

use crate::{ImageError, ReadOptions};

/// Fetches a URL and returns the body. Follows redirects.
///
/// # Errors
/// [`ImageError::NotAllowed`], [`ImageError::TooManyBytes`], [`ImageError::Cancelled`] or one of the network variants.
#[cfg(feature = "http")]
pub(crate) fn fetch(url: &Url, options: &ReadOptions) -> Result<Vec<u8>, ImageError> {
    http::fetch(url, options)
}

/// Always returns an error, because this build lacks the feature `http`.
///
/// # Errors
/// [`ImageError::NotAllowed`] or [`ImageError::HttpDisabled`].
#[cfg(not(feature = "http"))]
pub(crate) fn fetch(url: &Url, options: &ReadOptions) -> Result<Vec<u8>, ImageError> {
    options.sources.url(url)?;
    Err(ImageError::HttpDisabled { url: crate::source::shorten(url.as_str(), 200) })
}

#[cfg(feature = "http")]
mod http {
    use std::io::Read;
    use std::sync::mpsc::{self, RecvTimeoutError};
    use std::thread;
    use std::time::{Duration, Instant};

    use ureq::http::{Response, header};
    use ureq::{Agent, Body};
    use url::Url;

    use crate::source::shorten;
    use crate::{ImageError, ReadOptions};

    /// Interval at which cancellation is checked.
    const CANCEL_INTERVAL: Duration = Duration::from_millis(100);
    /// Value of the `User-Agent` header. Some hosts reject requests without this header.
    const USER_AGENT: &str = concat!("idefics/", env!("CARGO_PKG_VERSION"));

    /// Fetches a URL. Name resolution, connecting and reading can each block up to the time limit. Therefore, if the
    /// caller can cancel, they run on a separate thread, which ends by itself at the time limit.
    pub(super) fn fetch(url: &Url, options: &ReadOptions) -> Result<Vec<u8>, ImageError> {
        if options.cancel.is_none() {
            return follow(url, options);
        }
        let (sender, receiver) = mpsc::channel();
        let (thread_url, thread_options) = (url.clone(), options.clone());
        let spawned = thread::Builder::new().name("idefics-fetch".to_owned()).spawn(move || {
            let _ = sender.send(follow(&thread_url, &thread_options)); // fails if the read was cancelled
        });
        spawned.map_err(|error| network(url, error.to_string()))?;
        loop {
            match receiver.recv_timeout(CANCEL_INTERVAL) {
                Ok(fetched) => return fetched,
                Err(RecvTimeoutError::Timeout) if options.is_cancelled() => return Err(cancelled(url)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(network(url, "the connection failed".to_owned())),
            }
        }
    }

    /// Fetches a URL and follows redirects. Redirects are not left to `ureq`, because the policy must allow each
    /// address.
    fn follow(start: &Url, options: &ReadOptions) -> Result<Vec<u8>, ImageError> {
        let now = Instant::now();
        // If the deadline overflows the clock, use one day.
        let deadline = now.checked_add(options.limits.timeout).unwrap_or(now + Duration::from_secs(86_400));
        let mut url = start.clone();
        for _ in 0..=options.limits.max_redirects {
            options.sources.url(&url)?;
            let response = get(&url, deadline)?;
            let status = response.status();
            match response.headers().get(header::LOCATION).filter(|_| status.is_redirection()) {
                Some(location) => {
                    let target = location.to_str().ok().and_then(|target| url.join(target).ok());
                    url = target
                        .filter(|target| matches!(target.scheme(), "http" | "https"))
                        .ok_or_else(|| network(start, "it redirects to an address that is not http(s)".to_owned()))?;
                }
                None if !status.is_success() => {
                    return Err(ImageError::HttpStatus { url: name(start), status: status.as_u16() });
                }
                None => return read(start, response, options),
            }
        }
        Err(network(start, format!("more than {} redirects", options.limits.max_redirects)))
    }

    fn get(url: &Url, deadline: Instant) -> Result<Response<Body>, ImageError> {
        let agent: Agent = Agent::config_builder()
            .timeout_global(Some(deadline.saturating_duration_since(Instant::now())))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(USER_AGENT)
            .build()
            .new_agent();
        agent.get(url.as_str()).header("accept", "image/*").call().map_err(|error| network(url, error.to_string()))
    }

    /// Reads the body. The declared length is not trusted; bytes are counted as they arrive.
    fn read(url: &Url, mut response: Response<Body>, options: &ReadOptions) -> Result<Vec<u8>, ImageError> {
        let limit = options.limits.max_bytes;
        let mut reader = response.body_mut().with_config().limit(u64::MAX).reader().take(limit.saturating_add(1));
        let mut bytes = Vec::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            if options.is_cancelled() {
                return Err(cancelled(url));
            }
            match reader.read(&mut piece).map_err(|error| network(url, error.to_string()))? {
                0 if bytes.len() as u64 > limit => return Err(ImageError::TooManyBytes { image: name(url), limit }),
                0 => return Ok(bytes),
                n => bytes.extend_from_slice(&piece[..n]),
            }
        }
    }

    fn name(url: &Url) -> String {
        shorten(url.as_str(), 200)
    }

    fn network(url: &Url, reason: String) -> ImageError {
        ImageError::Network { url: name(url), reason }
    }

    fn cancelled(url: &Url) -> ImageError {
        ImageError::Cancelled { image: name(url) }
    }
}
