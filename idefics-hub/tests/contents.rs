//! What was downloaded has the hash that the server announced.

use std::fs;

use idefics_hub::{HubError, HubErrorKind, HubProgress, fetch_with};
use proptest::prelude::*;
use tempfile::TempDir;

use super::servers::{Hub, Model, Plain, as_the_hub, git_blob, sha1, sha256};
use super::{REPO, SHARDS, no_progress, offline};

type Tag = fn(&str, &[u8]) -> String;
const TAGS: [Tag; 4] = [sha256, git_blob, sha1, as_the_hub];

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

/// All files of the cache's blobs folder.
fn blobs(cache: &TempDir) -> Vec<String> {
    let folder = fs::read_dir(cache.path().join("models--org--tiny/blobs")).unwrap();
    folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn wrong_bytes_are_refused_and_not_kept() {
    for tag in TAGS {
        for file in [SHARDS[1], "config.json", "tokenizer.json", "model.safetensors.index.json"] {
            let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
            let right = hub.files()[file].clone();
            let mut wrong = right.clone();
            *wrong.last_mut().unwrap() ^= 1;
            hub.set(|state| {
                state.tag = tag;
                state.sent.insert(file.to_owned(), wrong.clone());
            });
            let name = tag(file, &right);
            let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
            let HubError::WrongContents { expected, found, .. } = &error else { panic!("{error}") };
            assert!(expected.ends_with(&name) && !found.ends_with(&name), "{error}");
            assert_eq!(error.kind(), HubErrorKind::Network);
            let text = error.to_string();
            assert!(text.contains(file) && text.contains(expected) && text.contains(found), "{text}");
            assert!(blobs(&cache).iter().all(|blob| !blob.starts_with(&name)), "{:?}", blobs(&cache));
            let downloads = hub.requests().iter().filter(|line| line.starts_with("GET") && line.contains(file)).count();
            assert_eq!(downloads, 1, "what comes whole and wrong is not asked for again");

            hub.set(|state| state.sent.clear());
            let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
            assert_eq!(fs::read(snapshot.join(file)).unwrap(), right, "{file}");
        }
    }
}

#[test]
fn a_file_in_parts_is_checked_as_a_whole() {
    for tag in TAGS {
        let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
        hub.set(|state| (state.tag, state.cut) = (tag, Some((SHARDS[0], 900, usize::MAX))));
        let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
        assert!(matches!(error, HubError::Interrupted { done: 900, .. }), "{error}");
        hub.set(|state| (state.cut, state.log) = (Some((SHARDS[0], 1700, 1)), Vec::new()));
        let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
        assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);
        let ranges = hub.requests().iter().filter(|line| line.contains(" bytes=")).count();
        assert_eq!(ranges, 2, "{:?}", hub.requests());
    }
}

#[test]
fn a_wrong_part_of_an_earlier_run_is_replaced() {
    for length in [1, 1200, 2500] {
        let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
        hub.set(|state| state.tag = as_the_hub);
        let right = hub.files()[SHARDS[0]].clone();
        let blobs_folder = cache.path().join("models--org--tiny/blobs");
        fs::create_dir_all(&blobs_folder).unwrap();
        fs::write(blobs_folder.join(format!("{}.incomplete", sha256("", &right))), vec![99; length]).unwrap();
        let mut seen = Vec::new();
        let mut progress = |at: HubProgress| {
            assert!(at.file_done <= at.file_total.unwrap() && at.done <= at.total, "{at:?}");
            seen.push(at);
        };
        let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut progress).unwrap();
        assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), right);
        assert_eq!(seen.last().unwrap().done, seen.last().unwrap().total);

        // If the server is wrong too, that is said.
        let cache = TempDir::new().unwrap();
        let blobs_folder = cache.path().join("models--org--tiny/blobs");
        fs::create_dir_all(&blobs_folder).unwrap();
        fs::write(blobs_folder.join(format!("{}.incomplete", sha256("", &right))), vec![99; length]).unwrap();
        hub.set(|state| state.sent.insert(SHARDS[0].to_owned(), vec![1; right.len()]));
        let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
        assert!(matches!(error, HubError::WrongContents { .. }), "{error}");
    }
}

#[test]
fn a_server_that_says_no_lengths_is_checked_too() {
    for tag in TAGS {
        let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
        hub.set(|state| (state.tag, state.lengths) = (tag, false));
        let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
        assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), hub.files()[SHARDS[0]]);

        let cache = TempDir::new().unwrap();
        hub.set(|state| state.sent.insert(SHARDS[0].to_owned(), b"short".to_vec()));
        let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
        assert!(matches!(error, HubError::WrongContents { .. }), "{error}");
    }
}

#[test]
fn a_storage_behind_the_hub_is_checked_against_the_hubs_hash() {
    let (storage, hub, cache) = (Hub::sharded(), Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| (state.tag, state.storage) = (as_the_hub, Some(storage.endpoint.clone())));
    fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    let cache = TempDir::new().unwrap();
    storage.set(|state| state.files.insert(SHARDS[1].to_owned(), vec![0; 2501]));
    let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(error, HubError::WrongContents { .. }), "{error}");
}

#[test]
fn tags_of_other_servers_are_no_hashes_of_contents() {
    let (cache, model) = (TempDir::new().unwrap(), Model::new());
    let server = Plain::start(move |request| {
        model.answer(request, |content| {
            let body = if request.starts_with("GET ") { content } else { "" };
            let tag = "0123456789abcdef0123456789abcdef01234567";
            format!("HTTP/1.1 200 OK\r\netag: \"{tag}\"\r\ncontent-length: {}\r\n\r\n{body}", content.len())
        })
    });
    let snapshot = fetch_with(&server.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read_to_string(snapshot.join("model.safetensors")).unwrap(), "weights");
}

#[test]
fn a_git_lfs_pointer_is_neither_downloaded_nor_used() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let right = hub.files()[SHARDS[0]].clone();
    hub.set(|state| state.files.insert(SHARDS[0].to_owned(), POINTER.into()));
    let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(&error, HubError::LfsPointer { file, .. } if file == SHARDS[0]), "{error}");
    assert_eq!(error.kind(), HubErrorKind::Rejected);
    assert!(
        blobs(&cache)
            .iter()
            .all(|blob| !blob.starts_with(&super::etag(POINTER.as_bytes())) || blob.ends_with("incomplete"))
    );

    // Its length is not the announced one either.
    let (storage, cdn_cache) = (Hub::sharded(), TempDir::new().unwrap());
    storage.set(|state| state.files.insert(SHARDS[0].to_owned(), POINTER.into()));
    hub.set(|state| {
        state.files.insert(SHARDS[0].to_owned(), right.clone());
        state.storage = Some(storage.endpoint.clone());
    });
    let error = fetch_with(&hub.options(&cdn_cache), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(&error, HubError::LfsPointer { file, .. } if file == SHARDS[0]), "{error}");
    hub.set(|state| state.storage = None);

    // One that another program put into the cache is replaced.
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    fs::write(snapshot.join(SHARDS[0]), POINTER).unwrap();
    let error = fetch_with(&offline(hub.options(&cache)), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(&error, HubError::NotCached { missing, .. } if missing == SHARDS[0]), "{error}");
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), right);
}

#[test]
fn the_client_names_itself() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    let own = concat!("idefics/", env!("CARGO_PKG_VERSION"));
    let agents = hub.set(|state| state.agents.clone());
    assert!(!agents.is_empty() && agents.iter().all(|agent| agent.starts_with(own)), "{agents:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the server sends under a hash: what is in the snapshot has that hash.
    #[test]
    fn what_is_kept_has_the_hash_that_was_announced(
        tag in 0..TAGS.len(),
        sent in prop::collection::vec(any::<u8>(), 0..64),
        right in prop::collection::vec(any::<u8>(), 1..64),
        is_right: bool,
        cut in prop::option::of(0..64_usize),
    ) {
        let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
        hub.set(|state| {
            state.tag = TAGS[tag];
            state.files.insert(SHARDS[0].to_owned(), right.clone());
            state.sent.insert(SHARDS[0].to_owned(), if is_right { right.clone() } else { sent.clone() });
            state.cut = cut.map(|bytes| (SHARDS[0], bytes, 1));
        });
        match fetch_with(&hub.options(&cache), REPO, None, &mut no_progress) {
            Ok(snapshot) => prop_assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), right),
            Err(error) => prop_assert!(!is_right && sent != right, "{error}"),
        }
    }
}
