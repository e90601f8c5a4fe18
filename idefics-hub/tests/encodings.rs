//! Tests with servers that compress files although the client asked for no compression.

use std::fs;

use idefics_hub::{HubError, fetch_with};
use tempfile::TempDir;

use super::servers::{Hub, hub_tag};
use super::{REPO, SHARDS, no_progress};

#[test]
fn gzip_is_decoded() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| (state.tag, state.encoding) = (hub_tag, Some("gzip")));
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    for file in ["config.json", "tokenizer.json", SHARDS[0], SHARDS[1]] {
        assert_eq!(fs::read(snapshot.join(file)).unwrap(), hub.files()[file], "{file}");
    }
    assert_eq!(fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap(), snapshot);
}

#[test]
fn restarts_interrupted_compressed_download() {
    for ranges in [true, false] {
        let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
        hub.set(|state| {
            (state.tag, state.encoding, state.ranges) = (hub_tag, Some("gzip"), ranges);
            state.cut = Some((SHARDS[0], 150, 1));
        });
        let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
        assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
    }
}

#[test]
fn does_not_append_compressed_bytes_to_plain_part() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| (state.tag, state.cut) = (hub_tag, Some((SHARDS[0], 100, usize::MAX))));
    fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
    hub.set(|state| (state.cut, state.encoding) = (None, Some("gzip")));
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
}

#[test]
fn rejects_other_encodings() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| state.encoding = Some("br"));
    let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(error, HubError::BadResponse { .. }) && error.to_string().contains("encoding"), "{error}");
}
