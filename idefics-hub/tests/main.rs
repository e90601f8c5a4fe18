//! Tests of `fetch_with` against local servers that implement the hub's file URLs.

#![allow(clippy::unwrap_used)] // also in helper functions

mod contents;
mod encodings;
mod interrupted;
mod servers;
mod unwritable;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use idefics_hub::{HubError, HubErrorKind, HubOptions, HubProgress, ModelSource, fetch_gguf, fetch_with};
use servers::{Hub, Model, Plain, State, etag};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "org/tiny";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const INDEX: &str = r#"{"metadata": {"total_size": 5000}, "weight_map": {
    "a.weight": "model-00001-of-00002.safetensors",
    "b.weight": "model-00002-of-00002.safetensors",
    "c.weight": "model-00002-of-00002.safetensors"}}"#;

#[test]
fn downloads_once_then_reads_the_cache() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let options = hub.options(&cache);
    let mut seen: Vec<(String, u64, u64)> = Vec::new();
    let mut progress = |at: HubProgress| {
        assert!(at.file_done <= at.file_total.unwrap() && at.done <= at.total, "{at:?}");
        seen.push((at.file, at.done, at.total));
    };
    let snapshot = fetch_with(&options, REPO, None, &mut progress).unwrap();

    assert_eq!(snapshot, cache.path().join("models--org--tiny/snapshots").join(COMMIT));
    for (name, content) in hub.files() {
        if WANTED.contains(&name.as_str()) || name.starts_with("model") {
            assert_eq!(fs::read(snapshot.join(&name)).unwrap(), content, "{name}");
        } else {
            assert!(!snapshot.join(&name).exists() && !hub.was_requested(&name), "{name}");
        }
    }
    assert_eq!(fs::read_to_string(cache.path().join("models--org--tiny/refs/main")).unwrap(), COMMIT);
    assert!(cache.path().join("models--org--tiny/.no_exist").join(COMMIT).join("chat_template.jinja").is_file());
    let (last, done, total) = seen.last().unwrap();
    assert_eq!((last.as_str(), *done), (SHARDS[1], *total));

    let requests = hub.requests().len();
    assert_eq!(fetch_with(&options, REPO, None, &mut no_progress).unwrap(), snapshot);
    assert_eq!(hub.requests().len() - requests, 1, "one request asks for the commit of the branch");
    assert_eq!(fetch_with(&options, REPO, Some(COMMIT), &mut no_progress).unwrap(), snapshot);
    assert_eq!(hub.requests().len() - requests, 1, "a commit never changes");

    hub.stop();
    assert_eq!(fetch_with(&options, REPO, None, &mut no_progress).unwrap(), snapshot);
    let without_network = offline(options);
    assert_eq!(fetch_with(&without_network, REPO, Some("main"), &mut no_progress).unwrap(), snapshot);
}

#[test]
fn offline_error_names_missing_file() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let without_network = offline(hub.options(&cache));
    let error = fetch_with(&without_network, REPO, None, &mut no_progress).unwrap_err();
    assert_eq!(error.kind(), HubErrorKind::Offline);
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");

    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    fs::remove_file(snapshot.join(SHARDS[1])).unwrap();
    let error = fetch_with(&without_network, REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(&error, HubError::NotCached { missing, .. } if missing == SHARDS[1]), "{error}");
}

#[test]
fn moved_branch_downloads_only_changed_files() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let first = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    hub.set(|state| {
        state.commit = "f".repeat(40);
        state.files.insert("config.json".into(), b"{\"new\": true}".to_vec());
        state.log.clear();
    });
    let second = fetch_with(&hub.options(&cache), REPO, Some("feature/x"), &mut no_progress).unwrap();
    assert_ne!(first, second);
    assert_eq!(fs::read(second.join("config.json")).unwrap(), b"{\"new\": true}");
    assert_eq!(fs::read(first.join("config.json")).unwrap(), b"{}");
    assert!(second.join(SHARDS[0]).is_file());
    let downloads: Vec<_> = hub.requests().into_iter().filter(|line| line.starts_with("GET")).collect();
    assert_eq!(downloads.len(), 1, "{downloads:?}");
    assert!(cache.path().join("models--org--tiny/refs/feature/x").is_file());
    assert!(hub.requests()[0].contains("/resolve/feature%2Fx/config.json"));
}

#[test]
fn token_is_not_sent_to_storage_server() {
    let (storage, hub, cache) = (Hub::sharded(), Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| state.storage = Some(storage.endpoint.clone()));
    let mut options = hub.options(&cache);
    options.token = Some("hf_secret".into());
    let snapshot = fetch_with(&options, REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join(SHARDS[1])).unwrap(), hub.files()[SHARDS[1]]);
    assert!(hub.requests().iter().all(|line| line.contains("Bearer hf_secret")), "{:?}", hub.requests());
    assert!(!storage.requests().is_empty());
    assert!(storage.requests().iter().all(|line| !line.contains("hf_secret")), "{:?}", storage.requests());
    assert!(!format!("{options:?}").contains("hf_secret"));
}

#[test]
fn distinguishes_server_errors() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let fail = |change: fn(&mut State), revision: Option<&str>| {
        let before = hub.set(|state| {
            let before = state.clone();
            change(state);
            before
        });
        let error = fetch_with(&hub.options(&cache), REPO, revision, &mut no_progress).unwrap_err();
        hub.set(|state| *state = before);
        assert!(!error.to_string().contains('\n') && error.to_string().contains(REPO), "{error}");
        error
    };
    let error = fail(|_| {}, Some("gone"));
    assert!(matches!(&error, HubError::RevisionNotFound { revision, .. } if revision == "gone"), "{error}");
    assert_eq!(error.kind(), HubErrorKind::NotFound);
    let error = fail(|state| state.refuse = Some((401, "")), None);
    assert_eq!(error.kind(), HubErrorKind::Unauthorized);
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    let error = fail(|state| state.refuse = Some((403, "GatedRepo")), None);
    assert!(error.to_string().contains("terms"), "{error}");
    let error = fail(|state| state.refuse = Some((404, "RepoNotFound")), None);
    assert!(matches!(error, HubError::RepoNotFound { .. }), "{error}");
    assert!(error.to_string().contains("no folder org/tiny"), "{error}");
    let error = fail(|state| state.refuse = Some((503, "")), None);
    assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");
    assert_eq!(error.kind(), HubErrorKind::Network);
    for missing in ["config.json", "tokenizer.json", "model.safetensors.index.json", SHARDS[0]] {
        let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
        hub.set(|state| [missing, "pytorch_model.bin"].map(|name| state.files.remove(name)));
        let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
        assert!(matches!(&error, HubError::FileNotFound { file, .. } if file.contains(missing)), "{error}");
        assert!(!cache.path().join("models--org--tiny/snapshots").join(COMMIT).join(SHARDS[1]).exists());
    }
}

#[test]
fn unreachable_server_without_cache_is_an_error() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let options = hub.options(&cache);
    hub.stop();
    let error = fetch_with(&options, REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert_eq!(error.kind(), HubErrorKind::Network);
    assert!(error.to_string().contains(&options.endpoint) && !error.to_string().contains("os error"), "{error}");
}

#[test]
fn rejects_index_with_unsafe_shard_names() {
    let long = "a".repeat(300) + ".safetensors";
    let names =
        ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "C:\\\\x.safetensors", "", ".safetensors"];
    for name in names.into_iter().chain(["x.bin", "x\\u0000.safetensors", &long]) {
        let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
        let index = format!(r#"{{"weight_map": {{"a": "{}", "b": "{name}"}}}}"#, SHARDS[0]);
        hub.set(|state| state.files.insert("model.safetensors.index.json".into(), index.into_bytes()));
        let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
        assert!(matches!(error, HubError::ShardName { .. }), "{name}: {error}");
        assert_eq!(error.kind(), HubErrorKind::Rejected);
        let downloads: Vec<_> = hub.requests().into_iter().filter(|line| line.starts_with("GET")).collect();
        assert_eq!(downloads.len(), 1, "only the index may be downloaded: {downloads:?}");
    }
    for index in ["", "[]", r#"{"weight_map": {}}"#, r#"{"weight_map": {"a": 1}}"#] {
        let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
        hub.set(|state| state.files.insert("model.safetensors.index.json".into(), index.into()));
        let error = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap_err();
        assert!(matches!(error, HubError::BadIndex { .. }), "{index}: {error}");
    }
}

#[test]
fn prefers_single_file_to_shards() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| state.files.insert("model.safetensors".into(), vec![7; 300_000]));
    let snapshot = fetch_with(&hub.options(&cache), REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), vec![7; 300_000]);
    assert!(!snapshot.join(SHARDS[0]).exists());
}

#[test]
fn rejects_ids_that_escape_the_cache() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let ids = [("org", None), ("a/b/c", None), ("../x", None), ("org/..", None), ("org/a b", None), ("/x", None)];
    for (repo, revision) in ids.into_iter().chain([(REPO, Some("")), (REPO, Some("../x")), (REPO, Some("/x"))]) {
        let error = fetch_with(&hub.options(&cache), repo, revision, &mut no_progress).unwrap_err();
        assert!(matches!(error, HubError::InvalidId { .. }), "{repo}: {error}");
    }
    assert!(hub.requests().is_empty());
}

/// Responses to `HEAD` from servers that support only `GET`.
const NO_HEAD: [&str; 6] = [
    "",
    "HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n",
    "HTTP/1.0 501 Unsupported method\r\n\r\n<html>",
    "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no HTTP at all\r\n\r\n",
];

#[test]
fn falls_back_to_get_without_head_support() {
    for head in NO_HEAD {
        let (cache, model) = (TempDir::new().unwrap(), Model::new());
        let server = Plain::start(move |request| match request.starts_with("GET ") {
            true => model.answer(request, |content| format!("HTTP/1.0 200 OK\r\n\r\n{content}")),
            false => head.to_owned(),
        });
        let snapshot = fetch_with(&server.options(&cache), REPO, None, &mut no_progress).unwrap();
        assert_eq!(fs::read_to_string(snapshot.join("model.safetensors")).unwrap(), "weights", "{head:?}");
        assert!(!snapshot.join("chat_template.jinja").exists());
        let options = server.options(&cache);
        drop(server);
        assert_eq!(fetch_with(&options, REPO, None, &mut no_progress).unwrap(), snapshot, "{head:?}");
        let without_network = offline(options);
        assert_eq!(fetch_with(&without_network, REPO, Some("main"), &mut no_progress).unwrap(), snapshot);
    }
}

#[test]
fn plain_file_server_downloads_only_changed_files() {
    // The ETag consists of a time and a size, so two files of the same size have the same ETag.
    let (cache, model) = (TempDir::new().unwrap(), Model::new());
    let (files, log) = (model.0.clone(), Arc::new(Mutex::new(Vec::new())));
    let requests = log.clone();
    let server = Plain::start(move |request| {
        requests.lock().unwrap().push(request.to_owned());
        model.answer(request, |content| {
            let body = if request.starts_with("GET ") { content } else { "" };
            format!("HTTP/1.1 200 OK\r\netag: \"1-{0}\"\r\ncontent-length: {0}\r\n\r\n{body}", content.len())
        })
    });
    let fetch = || fetch_with(&server.options(&cache), REPO, None, &mut no_progress).unwrap();
    let downloads =
        || std::mem::take(&mut *log.lock().unwrap()).into_iter().filter(|it| it.starts_with("GET ")).count();
    let first = fetch();
    assert_eq!(fs::read_to_string(first.join("tokenizer.json")).unwrap(), "{2}");
    assert_eq!(downloads(), 3);
    assert_eq!((fetch(), downloads()), (first.clone(), 0));
    files.lock().unwrap().insert("config.json", "{\"new\": 1}");
    let second = fetch();
    assert_eq!(downloads(), 1);
    assert_eq!(fs::read_to_string(first.join("config.json")).unwrap(), "{1}");
    assert_eq!(fs::read_to_string(second.join("config.json")).unwrap(), "{\"new\": 1}");
}

#[test]
fn follows_redirects_and_keeps_metadata_of_first_response() {
    for (location, told) in [
        ("/cdn/", true),
        ("/cdn/", false),
        ("../../../../cdn/", true),
        ("//HOST/cdn/", false),
        ("http://HOST/cdn/", true),
        ("http://HOST/cdn/", false),
    ] {
        let (cache, model) = (TempDir::new().unwrap(), Model::new());
        let server = Plain::start(move |request| {
            let path = request.split(' ').nth(1).unwrap();
            let name = path.rsplit('/').next().unwrap();
            let host = request.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
            model.answer(request, |content| match path.contains("/cdn/") {
                true if request.starts_with("HEAD ") => "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n".into(),
                true => {
                    format!("HTTP/1.1 200 OK\r\netag: \"cdn\"\r\ncontent-length: {}\r\n\r\n{content}", content.len())
                }
                false => {
                    let location = location.replace("HOST", host);
                    let size = content.len();
                    let told = match told {
                        true => {
                            format!("x-repo-commit: {COMMIT}\r\nx-linked-etag: \"{name}\"\r\nx-linked-size: {size}\r\n")
                        }
                        false => String::new(),
                    };
                    format!("HTTP/1.1 302 Found\r\n{told}content-length: 0\r\nlocation: {location}{name}\r\n\r\n")
                }
            })
        });
        let snapshot = fetch_with(&server.options(&cache), REPO, None, &mut no_progress).unwrap();
        for (name, content) in [("config.json", "{1}"), ("tokenizer.json", "{2}"), ("model.safetensors", "weights")] {
            assert_eq!(fs::read_to_string(snapshot.join(name)).unwrap(), content, "{location} {told}");
            assert_eq!(cache.path().join("models--org--tiny/blobs").join(name).exists(), told, "{location}");
        }
        assert_eq!(snapshot.ends_with(COMMIT), told, "{location}");
    }
}

#[test]
fn rejects_web_pages() {
    let cache = TempDir::new().unwrap();
    let server = Plain::start(|_| "HTTP/1.1 200 OK\r\n\r\n\n<!DOCTYPE html><html>Log in".to_owned());
    let error = fetch_with(&server.options(&cache), REPO, None, &mut no_progress).unwrap_err();
    assert!(error.to_string().contains("web page"), "{error}");
    assert!(!cache.path().join("models--org--tiny/refs").exists());
}

#[test]
fn reports_waiting_for_another_process() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let locks = cache.path().join(".locks/models--org--tiny");
    fs::create_dir_all(&locks).unwrap();
    let etag = etag(&hub.files()["config.json"]);
    let held = Mutex::new(Some(fs::File::create(locks.join(format!("{etag}.lock"))).unwrap()));
    held.lock().unwrap().as_ref().unwrap().lock().unwrap();
    let mut waited = 0;
    let mut progress = |at: HubProgress| {
        if at.is_waiting {
            waited += 1;
            *held.lock().unwrap() = None; // the other process is done
        }
    };
    fetch_with(&hub.options(&cache), REPO, None, &mut progress).unwrap();
    assert_eq!(waited, 1);
}

#[test]
fn fetches_pickles_only_if_allowed_and_without_safetensors() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    let options = hub.options(&cache);
    let with_pickles = allow_pickles(options.clone());
    let snapshot = fetch_with(&with_pickles, REPO, None, &mut no_progress).unwrap();
    assert!(snapshot.join(SHARDS[0]).is_file() && !hub.was_requested("pytorch_model.bin"));

    let cache = TempDir::new().unwrap();
    hub.set(|state| state.files.retain(|name, _| !name.starts_with("model")));
    let options = hub.options(&cache);
    let error = fetch_with(&options, REPO, None, &mut no_progress).unwrap_err();
    assert!(matches!(error, HubError::PickleRefused { file: "pytorch_model.bin", .. }), "{error}");
    assert!(error.kind() == HubErrorKind::Rejected && error.to_string().contains("--allow-pickle"), "{error}");
    let with_pickles = allow_pickles(options);
    let snapshot = fetch_with(&with_pickles, REPO, None, &mut no_progress).unwrap();
    assert_eq!(fs::read(snapshot.join("pytorch_model.bin")).unwrap(), b"not wanted");
    let without_network = offline(with_pickles);
    assert_eq!(fetch_with(&without_network, REPO, None, &mut no_progress).unwrap(), snapshot);
}

#[test]
fn parses_folders_and_hub_ids() {
    let hub = |repo: &str, revision: Option<&str>| ModelSource::Hub {
        repo: repo.to_owned(),
        revision: revision.map(str::to_owned),
    };
    assert_eq!(ModelSource::parse("org/name"), hub("org/name", None));
    assert_eq!(ModelSource::parse("org/name@v1.0"), hub("org/name", Some("v1.0")));
    assert_eq!(ModelSource::parse("org/name@refs/pr/1"), hub("org/name", Some("refs/pr/1")));
    let file = |revision: Option<&str>| ModelSource::HubFile {
        repo: "org/name".to_owned(),
        revision: revision.map(str::to_owned),
        file: "m-Q8_0.gguf".to_owned(),
    };
    assert_eq!(ModelSource::parse("org/name:m-Q8_0.gguf"), file(None));
    assert_eq!(ModelSource::parse("org/name@v1.0:m-Q8_0.gguf"), file(Some("v1.0")));
    for folder in ["./a/b:m.gguf", "/a/b:m.gguf", "./a/b", "../a", "/a/b", "a", "a/b/c", "a\\b", "src", "tests/main.rs"]
    {
        assert_eq!(ModelSource::parse(folder), ModelSource::Folder(PathBuf::from(folder)), "{folder}");
    }
    let existing = TempDir::new().unwrap();
    assert_eq!(ModelSource::parse(existing.path().to_str().unwrap()), ModelSource::Folder(existing.path().to_owned()));
}

#[test]
fn one_gguf_file_of_a_repository_is_fetched() {
    let (hub, cache) = (Hub::sharded(), TempDir::new().unwrap());
    hub.set(|state| {
        for name in ["m-Q8_0.gguf", "m-Q4_0.gguf", "mmproj-m.gguf", "s-00001-of-00002.gguf", "s-00002-of-00002.gguf"] {
            state.files.insert(name.to_owned(), name.as_bytes().to_vec());
        }
        state.files.remove("config.json");
    });
    let options = hub.options(&cache);
    let get = |options: &HubOptions, file: &str, mmproj: Option<&str>| {
        fetch_gguf(options, REPO, None, file, mmproj, &mut no_progress)
    };
    let path = get(&options, "m-Q8_0.gguf", None).unwrap();
    assert_eq!(path, cache.path().join("models--org--tiny/snapshots").join(COMMIT).join("m-Q8_0.gguf"));
    assert_eq!(fs::read(&path).unwrap(), b"m-Q8_0.gguf");
    let has = |name: &str| path.with_file_name(name).is_file();
    assert!(has("tokenizer.json") && has("preprocessor_config.json"));
    assert!(!has("m-Q4_0.gguf") && !has("mmproj-m.gguf") && !has(SHARDS[0]));
    get(&options, "m-Q8_0.gguf", Some("mmproj-m.gguf")).unwrap();
    assert!(has("mmproj-m.gguf"));
    get(&options, "s-00001-of-00002.gguf", None).unwrap();
    assert!(has("s-00002-of-00002.gguf"));

    let error = get(&options, "gone.gguf", None).unwrap_err();
    assert!(matches!(&error, HubError::FileNotFound { file, .. } if file == "gone.gguf"), "{error}");
    for name in ["../m.gguf", "a/m.gguf", "config.json", ".gguf"] {
        let error = get(&options, name, None).unwrap_err();
        assert!(matches!(&error, HubError::GgufName { .. }), "{error}");
    }
    hub.stop();
    assert_eq!(get(&options, "m-Q8_0.gguf", None).unwrap(), path);
    let without_network = offline(options);
    assert_eq!(get(&without_network, "m-Q8_0.gguf", Some("mmproj-m.gguf")).unwrap(), path);
    let error = get(&without_network, "m-Q4_0.gguf", None).unwrap_err();
    assert!(matches!(&error, HubError::NotCached { missing, .. } if missing == "m-Q4_0.gguf"), "{error}");
}

/// The files of the test repository that a fetch downloads besides the weights and their index.
const WANTED: [&str; 4] = ["config.json", "tokenizer.json", "preprocessor_config.json", "generation_config.json"];

fn no_progress(_: HubProgress) {}

fn offline(mut options: HubOptions) -> HubOptions {
    options.offline = true;
    options
}

fn allow_pickles(mut options: HubOptions) -> HubOptions {
    options.allow_pickles = true;
    options
}
