//! Tests of interrupted and cancelled downloads.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use idefics_hub::{HubError, HubErrorKind, HubProgress, fetch_with};
use tempfile::TempDir;

use super::servers::{Hub, sha256};
use super::{REPO, SHARDS, no_progress};

#[test]
fn interrupted_download_resumes() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| state.cut = Some((SHARDS[0], 1000, 1)));
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
    assert!(hub.requests().iter().any(|line| line.ends_with("bytes=1000-")), "{:?}", hub.requests());

    // The connection is always lost, so the download fails. A later run resumes it.
    let cache = TempDir::new().unwrap();
    hub.set(|state| state.cut = Some((SHARDS[0], 1000, usize::MAX)));
    let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }), "{error}");
    assert_eq!(error.kind(), HubErrorKind::Network);
    assert!(!cache.path().join("models--org--tiny/refs/main").exists(), "refs points to an incomplete snapshot");
    hub.set(|state| (state.cut, state.log) = (None, Vec::new()));
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
    assert!(hub.requests().iter().any(|line| line.contains(" bytes=")), "{:?}", hub.requests());
}

#[test]
fn restarts_if_server_ignores_ranges() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| (state.cut, state.ranges) = (Some((SHARDS[0], 1000, 1)), false));
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
}

#[test]
fn cancels_while_server_does_not_respond() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| (state.tag, state.stall) = (sha256, Some((SHARDS[0], 700))));
    let mut options = hub.options(&cache);
    let mut progress = |at: HubProgress| {
        if at.file == SHARDS[0] && at.file_done == 700 {
            options.cancel.store(true, Ordering::Relaxed);
        }
    };
    let error = fetch_with(&options, REPO, None, &mut progress).unwrap_err();
    assert!(matches!(error, HubError::Cancelled) && error.kind() == HubErrorKind::Cancelled, "{error}");
    let part = format!("models--org--tiny/blobs/{}.incomplete", sha256(SHARDS[0], &hub.files()[SHARDS[0]]));
    assert_eq!(fs::metadata(cache.path().join(part)).unwrap().len(), 700);

    // The abandoned thread ends with its connection, and the next call resumes the download.
    hub.set(|state| (state.stall, state.stalled, state.log) = (None, Vec::new(), Vec::new()));
    options.cancel = Arc::default();
    let snapshot = fetch_with(&options, REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
    assert!(hub.requests().iter().any(|line| line.ends_with("bytes=700-")), "{:?}", hub.requests());
}

#[test]
fn cancelled_download_sends_no_request() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let options = hub.options(&cache);
    options.cancel.store(true, Ordering::Relaxed);
    let error = fetch_with(&options, REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(error, HubError::Cancelled), "{error}");
    assert!(hub.requests().is_empty());
}
