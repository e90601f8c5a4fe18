//! Downloads that end before the file does.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use idefics_hub::{HubError, HubErrorKind, HubProgress, fetch_with};
use tempfile::TempDir;

use super::servers::{Hub, sha256};
use super::{REPO, SHARDS, no_progress};

#[test]
fn an_interrupted_file_goes_on_where_it_stopped() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| state.cut = Some((SHARDS[0], 1000, 1)));
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
    assert!(hub.requests().iter().any(|line| line.ends_with("bytes=1000-")), "{:?}", hub.requests());

    // The server goes away in the middle, and a later run finds what is there.
    let cache = TempDir::new().unwrap();
    hub.set(|state| state.cut = Some((SHARDS[0], 1000, usize::MAX)));
    let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }), "{error}");
    assert_eq!(error.kind(), HubErrorKind::Network);
    assert!(!cache.path().join("models--org--tiny/refs/main").exists(), "an incomplete snapshot is not referred to");
    hub.set(|state| (state.cut, state.log) = (None, Vec::new()));
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
    assert!(hub.requests().iter().any(|line| line.contains(" bytes=")), "{:?}", hub.requests());
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| (state.cut, state.ranges) = (Some((SHARDS[0], 1000, 1)), false));
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
}

#[test]
fn a_download_can_be_cancelled_while_the_server_is_silent() {
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

    // The abandoned thread ends with its connection, and the next call continues the file.
    hub.set(|state| (state.stall, state.stalled, state.log) = (None, Vec::new(), Vec::new()));
    options.cancel = Arc::default();
    let snapshot = fetch_with(&options, REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
    assert!(hub.requests().iter().any(|line| line.ends_with("bytes=700-")), "{:?}", hub.requests());
}

#[test]
fn a_cancelled_download_asks_nothing() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let options = hub.options(&cache);
    options.cancel.store(true, Ordering::Relaxed);
    let error = fetch_with(&options, REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(error, HubError::Cancelled), "{error}");
    assert!(hub.requests().is_empty());
}
