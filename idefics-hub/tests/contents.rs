//! Tests of the verification of downloaded files against the announced hash.

use std::fs;

use idefics_hub::{HubError, HubErrorKind, HubProgress, fetch_with};
use proptest::prelude::*;
use tempfile::TempDir;

use super::servers::{Hub, Model, Plain, git_blob, hub_tag, sha1, sha256};
use super::{REPO, SHARDS, no_progress, offline};

type Tag = fn(&str, &[u8]) -> String;
const TAGS: [Tag; 4] = [sha256, git_blob, sha1, hub_tag];

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

/// Lists the names of all files in the blobs folder of the cache.
fn blobs(cache: &TempDir) -> Vec<String> {
    let folder = fs::read_dir(cache.path().join("models--org--tiny/blobs")).unwrap();
    folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn rejects_and_deletes_wrong_contents() {
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
            assert_eq!(downloads, 1, "a complete file with a wrong hash must not be downloaded again");

            hub.set(|state| state.sent.clear());
            let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
            assert_eq!(fs::read(snapshot.join(file)).unwrap(), right, "{file}");
        }
    }
}

#[test]
fn verifies_resumed_file_as_a_whole() {
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
fn replaces_wrong_partial_file() {
    for length in [1, 1200, 2500] {
        let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
        hub.set(|state| state.tag = hub_tag);
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

        // If the server sends wrong bytes too, the download fails.
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
fn verifies_files_without_content_length() {
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
fn verifies_storage_server_against_hub_hash() {
    let (storage, hub, cache) = (Hub::sharded(), Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| (state.tag, state.storage) = (hub_tag, Some(storage.endpoint.clone())));
    fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    let cache = TempDir::new().unwrap();
    storage.set(|state| state.files.insert(SHARDS[1].to_owned(), vec![0; 2501]));
    let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(error, HubError::WrongContents { .. }), "{error}");
}

#[test]
fn ignores_etags_of_other_servers() {
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
fn rejects_git_lfs_pointers() {
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

    // The hub announces the real file, and the storage server sends a pointer.
    let (storage, cdn_cache) = (Hub::sharded(), TempDir::new().unwrap());
    storage.set(|state| state.files.insert(SHARDS[0].to_owned(), POINTER.into()));
    hub.set(|state| {
        state.files.insert(SHARDS[0].to_owned(), right.clone());
        state.storage = Some(storage.endpoint.clone());
    });
    let error = fetch_with(&hub.options(&cdn_cache), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(&error, HubError::LfsPointer { file, .. } if file == SHARDS[0]), "{error}");
    hub.set(|state| state.storage = None);

    // A pointer that another program stored in the cache is replaced by the file.
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    fs::write(snapshot.join(SHARDS[0]), POINTER).unwrap();
    let error = fetch_with(&offline(hub.options(&cache)), REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(&error, HubError::NotCached { missing, .. } if missing == SHARDS[0]), "{error}");
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[0])).unwrap(), right);
}

#[test]
fn user_agent_names_the_program() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    let own = concat!("idefics/", env!("CARGO_PKG_VERSION"));
    let agents = hub.set(|state| state.agents.clone());
    assert!(!agents.is_empty() && agents.iter().all(|agent| agent.starts_with(own)), "{agents:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A file in the snapshot has the announced hash, whatever bytes the server sends.
    #[test]
    fn stored_files_have_the_announced_hash(
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
