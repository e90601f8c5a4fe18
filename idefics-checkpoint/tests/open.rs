//! Tests of safetensors folders, mostly broken ones: every fault is a typed error that names the file or tensor.

use idefics_checkpoint::{Checkpoint, CheckpointError};
use proptest::prelude::*;

use crate::folders::{INDEX, SINGLE, TINY, assert_error, file, folder_with, index, shards, tensors};

fn open(files: &[(&str, &[u8])]) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(folder_with(files).path())
}

fn error_of(files: &[(&str, &[u8])]) -> CheckpointError {
    open(files).expect_err("the checkpoint should be rejected")
}

#[test]
fn lists_tensors_with_shape_and_bytes() {
    let checkpoint = open(&[(SINGLE, &tensors(&TINY))]).unwrap();
    let names: Vec<&str> = checkpoint.tensors().map(|(name, _)| name).collect();
    assert_eq!(names, ["layers.0.bias", "layers.0.weight", "norm"]);
    let norm = checkpoint.tensor("norm").unwrap();
    assert_eq!((norm.shape.as_slice(), norm.num_elements(), norm.file.as_str()), (&[2][..], 2, SINGLE));
    assert_eq!(norm.bytes(), [0_f32.to_le_bytes(), 1_f32.to_le_bytes()].concat());
}

#[test]
fn rejects_folder_without_weights() {
    assert_error!(error_of(&[("weights.bin", b"x")]), CheckpointError::NotFound { .. }, "no weights", INDEX);
}

#[test]
fn rejects_truncated_header() {
    let good = tensors(&TINY);
    for length in 0..8 {
        let error = error_of(&[(SINGLE, &good[..length])]);
        assert_error!(error, CheckpointError::Truncated { .. }, SINGLE, "8 bytes", &length.to_string());
    }
    let header_end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for length in [8, 9, header_end - 1] {
        assert_error!(error_of(&[(SINGLE, &good[..length])]), CheckpointError::Truncated { .. }, "the header");
    }
}

#[test]
fn rejects_wrong_header_length() {
    for claimed in [(16 << 20) + 1, u64::MAX - 7, u64::MAX] {
        let mut bytes = tensors(&TINY);
        bytes[..8].copy_from_slice(&claimed.to_le_bytes());
        let error = error_of(&[(SINGLE, &bytes)]);
        assert_error!(error, CheckpointError::HeaderLength { .. }, SINGLE, &claimed.to_string());
    }
    let mut bytes = tensors(&TINY);
    bytes[0] -= 1; // cuts off the last brace of the header
    assert_error!(error_of(&[(SINGLE, &bytes)]), CheckpointError::Header { .. }, SINGLE);
}

#[test]
fn error_for_truncated_data_names_the_tensor() {
    let good = tensors(&TINY);
    let error = error_of(&[(SINGLE, &good[..good.len() - 1])]);
    assert_error!(error, CheckpointError::Truncated { .. }, "`norm`", &good.len().to_string());
}

#[test]
fn rejects_malformed_header() {
    let entry = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let deep = format!(r#"{{"norm":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let long_name = format!(r#"{{"{}":{entry}}}"#, "n".repeat(5000));
    let headers = [
        "",
        "[]",
        "not JSON",
        r#"{"norm":"#,
        r#" {"norm":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"norm":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"norm":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
        r#"{"norm":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}}"#,
        r#"{"norm":{"dtype":"F32","shape":[2]}}"#,
        r#"{"norm":7}"#,
        &deep,
        &long_name,
    ];
    for header in headers {
        assert_error!(error_of(&[(SINGLE, &file(header, &[0; 8]))]), CheckpointError::Header { .. }, SINGLE);
    }
    let mut not_utf8 = file(&format!(r#"{{"norm":{entry}}}"#), &[0; 8]);
    not_utf8[11] = 0xFF;
    assert_error!(error_of(&[(SINGLE, &not_utf8)]), CheckpointError::Header { .. }, SINGLE);
}

#[test]
fn rejects_inconsistent_offsets() {
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{first}}},
                 "b":{{"dtype":"F32","shape":[2],"data_offsets":{second}}}}}"#
        )
    };
    for (what, header) in [
        ("a hole", two("[0,8]", "[9,17]")),
        ("an overlap", two("[0,8]", "[4,12]")),
        ("reversed", two("[0,8]", "[16,8]")),
        ("far reversed", two("[0,8]", "[18446744073709551615,16]")),
        ("late start", two("[1,9]", "[9,17]")),
        ("too short for the shape", two("[0,7]", "[7,15]")),
        ("a shape that overflows", two("[0,8]", "[8,16]").replace("[2]", "[4294967296,4294967296]")),
        ("a size that overflows", two("[0,8]", "[8,16]").replace("[2]", "[4611686018427387904]")),
    ] {
        let error = error_of(&[(SINGLE, &file(&header, &[0; 17]))]);
        assert!(matches!(error, CheckpointError::Header { .. }), "{what}: {error:?}");
    }
    let trailing = [tensors(&TINY), vec![0]].concat();
    assert_error!(error_of(&[(SINGLE, &trailing)]), CheckpointError::Header { .. }, SINGLE);
    let far = two("[0,8]", "[8,18446744073709551615]");
    let error = error_of(&[(SINGLE, &file(&far, &[0; 17]))]);
    assert!(matches!(error, CheckpointError::Header { .. } | CheckpointError::Truncated { .. }), "{error:?}");
}

#[test]
fn rejects_duplicate_tensor_names() {
    let entry = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    for again in ["norm", "n\\u006frm"] {
        let header = format!(r#"{{"norm":{entry},"{again}":{entry}}}"#);
        assert_error!(
            error_of(&[(SINGLE, &file(&header, &[0; 8]))]),
            CheckpointError::Duplicate { .. },
            "`norm`",
            SINGLE
        );
    }
}

#[test]
fn recognises_git_lfs_pointers() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4f4f\nsize 4912345678\n";
    let [first, _] = shards();
    let index = index(["a-1", "a-1", "a-2"]);
    let folders: [&[(&str, &[u8])]; 3] =
        [&[(SINGLE, pointer)], &[(INDEX, pointer)], &[(INDEX, &index), ("a-1", &first), ("a-2", pointer)]];
    for (files, name) in folders.into_iter().zip([SINGLE, INDEX, "a-2"]) {
        assert_error!(error_of(files), CheckpointError::UnexpectedFile { .. }, name, "git lfs pull");
    }
}

#[test]
fn recognises_other_kinds_of_files_and_says_what_to_do() {
    let files: [(&[u8], &str, &str); 4] = [
        (b"GGUF\x03\0\0\0\x10\0\0\0", "is a GGUF file", "original checkpoint"),
        (b"PK\x03\x04\0\0\x08\x08\0\0", "is a zip archive", "--allow-pickle"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "is a Python pickle", "save_file(torch.load"),
        (b"<!doctype html>\n<html><title>Log in</title></html>", "is an HTML page", "download it again"),
    ];
    for (content, what, remedy) in files {
        let error = error_of(&[(SINGLE, content)]);
        assert!(!error.to_string().contains('\n'), "{error}");
        assert_error!(error, CheckpointError::UnexpectedFile { .. }, SINGLE, what, remedy);
    }
    assert_error!(error_of(&[(INDEX, b"<html>")]), CheckpointError::UnexpectedFile { .. }, INDEX, "an HTML page");
}

#[test]
fn rejects_directory() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(SINGLE)).unwrap();
    assert_error!(Checkpoint::open(folder.path()).unwrap_err(), CheckpointError::NotAFile { .. }, SINGLE);
}

#[cfg(unix)]
#[test]
fn rejects_pipe_without_blocking() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join(SINGLE);
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|status| status.success()) {
        assert_error!(Checkpoint::open(folder.path()).unwrap_err(), CheckpointError::NotAFile { .. }, SINGLE);
    }
}

#[test]
fn lists_all_missing_shards() {
    let index = index(["a-1", "a-2", "a-3"]);
    let error = error_of(&[(INDEX, &index), ("a-1", &tensors(&TINY[..1]))]);
    assert_error!(error, CheckpointError::ShardMissing { .. }, "`a-2`", "`a-3`", INDEX);
}

#[test]
fn rejects_shard_names_outside_the_folder() {
    let [first, second] = shards();
    let long = "x".repeat(256);
    for name in ["../x", "/etc/passwd", "a/b", "a\\b", "C:x", "..", ".", "", ".hidden", "a\0b", "a b", "é", &long] {
        let index = index(["a-1", "a-1", name]);
        let error = error_of(&[(INDEX, &index), ("a-1", &first), ("x", &second)]);
        assert_error!(error, CheckpointError::ShardName { .. }, "`norm`", &format!("{name:?}"), INDEX);
    }
}

#[test]
fn warns_of_tensors_that_are_only_in_the_index() {
    let [first, second] = shards();
    let mut index: serde_json::Value = serde_json::from_slice(&index(["a-1", "a-1", "a-2"])).unwrap();
    index["weight_map"]["rotary_emb.inv_freq"] = "a-2".into();
    let index = index.to_string();
    let folder = folder_with(&[(INDEX, index.as_bytes()), ("a-1", &first), ("a-2", &second)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let [warning] = checkpoint.warnings() else { panic!("{:?}", checkpoint.warnings()) };
    let said = warning.to_string();
    assert!(
        said.contains(INDEX) && said.contains("1 of the tensors") && said.contains("`rotary_emb.inv_freq`"),
        "{said}"
    );
    assert_eq!(checkpoint.tensors().count(), TINY.len());
}

#[test]
fn shard_contents_take_precedence_over_the_index() {
    let [first, second] = shards();
    let norm = [0.0_f32, 1.0].map(f32::to_le_bytes).concat();
    // The index names the wrong shard.
    let wrong = index(["a-1", "a-2", "a-1"]);
    let checkpoint = open(&[(INDEX, &wrong), ("a-1", &first), ("a-2", &second)]).unwrap();
    assert_eq!(checkpoint.tensor("norm").unwrap().bytes(), norm);
    // A shard lacks a tensor that the index assigns to it.
    let lacking = index(["a-1", "a-1", "a-1"]);
    assert!(open(&[(INDEX, &lacking), ("a-1", &first)]).unwrap().tensor("norm").is_none());
    // Two shards have a tensor of the same name: the index decides, in either order of the shards.
    for (named, other) in [("a-1", "a-2"), ("a-2", "a-1")] {
        let twice = index([other, other, named]);
        let mut wrong = tensors(&TINY);
        let end = wrong.len();
        wrong[end - 4..].copy_from_slice(&9.0_f32.to_le_bytes());
        let checkpoint = open(&[(INDEX, &twice), (named, &second), (other, &wrong)]).unwrap();
        assert_eq!(checkpoint.tensor("norm").unwrap().bytes(), norm, "{named}");
    }
}

#[test]
fn rejects_malformed_index() {
    for text in ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"norm":1}}"#] {
        assert_error!(error_of(&[(INDEX, text.as_bytes())]), CheckpointError::Index { .. }, INDEX);
    }
    assert_eq!(open(&[(INDEX, br#"{"weight_map":{}}"#)]).unwrap().tensors().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), header: String) {
        prop_assert!(open(&[(SINGLE, &bytes)]).is_err());
        let _ = open(&[(SINGLE, &file(&header, &bytes))]);
        prop_assert!(open(&[(INDEX, &bytes)]).is_err());
    }

    #[test]
    fn damaged_files_never_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = tensors(&TINY);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(checkpoint) = open(&[(SINGLE, &bytes)]) {
            prop_assert!(checkpoint.tensors().all(|(_, entry)| entry.bytes().len() == entry.len_bytes()));
        }
    }
}
