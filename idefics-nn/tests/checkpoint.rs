//! Faults of checkpoints: each is a typed error that names the file or the tensor, and none is a panic.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use idefics_nn::{Activations, Checkpoint, CheckpointError, Embedding, Linear, LoadOptions, normal};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::common::{assert_close, values};
use crate::memory::measure;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A safetensors file: the header's length, the header, the data.
pub(crate) fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), data].concat()
}

pub(crate) fn folder_with(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// A file of f32 tensors, each element its index.
fn tensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        (0..shape.iter().product()).for_each(|i: usize| data.extend((i as f32).to_le_bytes()));
        let end = data.len();
        entries.push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
    }
    file(&format!("{{{}}}", entries.join(",")), &data)
}

/// Two layers, one inside a list.
#[derive(Module, Debug)]
struct Tiny {
    layers: Vec<Linear>,
    norm: Param<Tensor<1>>,
}

const TINY: [(&str, &[usize]); 3] = [("layers.0.weight", &[2, 3]), ("layers.0.bias", &[2]), ("norm", &[2])];

fn tiny() -> Tiny {
    let device = Device::flex();
    Tiny { layers: vec![Linear::new(3, 2, &device)], norm: normal([2], 0.0, 1.0, &device) }
}

fn load_tiny(files: &[(&str, &[u8])]) -> Result<Tiny, CheckpointError> {
    let folder = folder_with(files);
    Checkpoint::open(folder.path())?.load(tiny(), &LoadOptions::default(), |_| ())
}

fn error_of(files: &[(&str, &[u8])]) -> CheckpointError {
    load_tiny(files).expect_err("the checkpoint has a fault")
}

/// Asserts the variant, and that the message says each of the words.
macro_rules! assert_error {
    ($error:expr, $variant:pat, $($word:expr),*) => {{
        let error: CheckpointError = $error;
        let message = error.to_string();
        assert!(matches!(error, $variant), "{error:?}");
        $(assert!(message.contains($word), "{message:?} does not say {:?}", $word);)*
    }};
}

#[test]
fn a_good_file_loads() {
    let tiny = load_tiny(&[(SINGLE, &tensors(&TINY))]).unwrap();
    assert_eq!(values(tiny.norm.val()), [0.0, 1.0]);
    let output = tiny.layers[0].forward(Tensor::<1>::from_floats([1.0, 10.0, 100.0], &Device::flex()));
    assert_eq!(values(output), [210.0, 544.0]); // the weight is [[0, 1, 2], [3, 4, 5]], the bias [0, 1]
}

#[test]
fn a_folder_without_weights() {
    assert_error!(error_of(&[("weights.bin", b"x")]), CheckpointError::NotFound { .. }, "no weights", INDEX);
}

#[test]
fn a_file_shorter_than_its_header() {
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
fn a_header_length_that_lies() {
    for claimed in [(16 << 20) + 1, u64::MAX - 7, u64::MAX] {
        let mut bytes = tensors(&TINY);
        bytes[..8].copy_from_slice(&claimed.to_le_bytes());
        let error = error_of(&[(SINGLE, &bytes)]);
        assert_error!(error, CheckpointError::HeaderLength { .. }, SINGLE, &claimed.to_string());
    }
    let mut bytes = tensors(&TINY);
    bytes[0] -= 1; // the header loses its last brace
    assert_error!(error_of(&[(SINGLE, &bytes)]), CheckpointError::Header { .. }, SINGLE);
}

#[test]
fn truncated_data_names_the_tensor() {
    let good = tensors(&TINY);
    let error = error_of(&[(SINGLE, &good[..good.len() - 1])]);
    assert_error!(error, CheckpointError::Truncated { .. }, "`norm`", &good.len().to_string());
}

#[test]
fn a_header_that_is_not_one() {
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
fn offsets_that_do_not_fit() {
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
fn a_name_twice_in_a_file() {
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
fn missing_tensors_are_listed_together() {
    let error = error_of(&[(SINGLE, &tensors(&TINY[..1]))]);
    assert_error!(error, CheckpointError::Missing { .. }, "2 tensors", "`layers.0.bias`", "`norm`");
}

#[test]
fn unused_tensors_are_passed_over_and_named() {
    let more = [TINY.as_slice(), &[("layers.1.weight", &[2, 3]), ("normal", &[1])]].concat();
    let folder = folder_with(&[(SINGLE, &tensors(&more))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let options = LoadOptions::default();
    assert_eq!(checkpoint.unused(&tiny(), &options), ["layers.1.weight", "normal"]);
    let loaded = checkpoint.load(tiny(), &options, |_| ()).unwrap();
    assert_eq!(values(loaded.norm.val()), [0.0, 1.0]);
    assert_eq!(checkpoint.unused(&loaded, &options), ["layers.1.weight", "normal"], "asked afterwards, too");
}

#[test]
fn a_git_lfs_pointer_is_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4f4f\nsize 4912345678\n";
    let [first, _] = shards();
    let index = index(["a-1", "a-1", "a-2"]);
    let folders: [&[(&str, &[u8])]; 3] =
        [&[(SINGLE, pointer)], &[(INDEX, pointer)], &[(INDEX, &index), ("a-1", &first), ("a-2", pointer)]];
    for (files, name) in folders.into_iter().zip([SINGLE, INDEX, "a-2"]) {
        assert_error!(error_of(files), CheckpointError::OtherFile { .. }, name, "git lfs pull");
    }
}

#[test]
fn files_of_other_kinds_are_named_with_the_remedy() {
    let files: [(&[u8], &str, &str); 4] = [
        (b"GGUF\x03\0\0\0\x10\0\0\0", "is a GGUF file", "original checkpoint"),
        (b"PK\x03\x04\0\0\x08\x08\0\0", "is a zip archive", "--allow-pickle"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "is a Python pickle", "save_file(torch.load"),
        (b"<!doctype html>\n<html><title>Log in</title></html>", "is a page of a server (HTML)", "download it again"),
    ];
    for (content, what, remedy) in files {
        let error = error_of(&[(SINGLE, content)]);
        assert!(!error.to_string().contains('\n'), "{error}");
        assert_error!(error, CheckpointError::OtherFile { .. }, SINGLE, what, remedy);
    }
    assert_error!(error_of(&[(INDEX, b"<html>")]), CheckpointError::OtherFile { .. }, INDEX, "a page of a server");
}

#[test]
fn a_prefix_before_all_names_is_named() {
    for (prefix, remedy) in [
        ("module.", "k.removeprefix(\"module.\")"),
        ("_orig_mod.", "k.removeprefix(\"_orig_mod.\")"),
        ("base_model.model.", "merge_and_unload"),
    ] {
        let names = TINY.map(|(name, shape)| (format!("{prefix}{name}"), shape));
        let longer: Vec<(&str, &[usize])> = names.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
        let error = error_of(&[(SINGLE, &tensors(&longer))]);
        assert_error!(error, CheckpointError::Prefixed { .. }, &format!("`{prefix}layers.0.weight`"), remedy);
        // One of several is not a prefix of all.
        let error = error_of(&[(SINGLE, &tensors(&longer[2..]))]);
        assert_error!(error, CheckpointError::Missing { .. }, "`layers.0.weight`");
    }
}

#[test]
fn strays_of_old_checkpoints_are_ignored() {
    let strays: [(&str, &[usize]); 2] =
        [("layers.0.self_attn.rotary_emb.inv_freq", &[4]), ("vision_model.embeddings.position_ids", &[1, 9])];
    let folder = folder_with(&[(SINGLE, &tensors(&[TINY.as_slice(), &strays].concat()))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.unused(&tiny(), &LoadOptions::default()).is_empty());
    assert!(checkpoint.load(tiny(), &LoadOptions::default(), |_| ()).is_ok());
}

#[test]
fn other_components_are_left_alone() {
    let prefixed = [
        ("text.norm", &[5][..]),
        ("vision.layers.0.weight", &[2, 3]),
        ("vision.layers.0.bias", &[2]),
        ("vision.norm", &[2]),
    ];
    let folder = folder_with(&[(SINGLE, &tensors(&prefixed))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let options = LoadOptions { prefix: "vision.", ..LoadOptions::default() };
    let mut progress = Vec::new();
    checkpoint.load(tiny(), &options, |now| progress.push((now.bytes_done, now.bytes_total))).unwrap();
    assert_eq!(progress, [(24, 40), (32, 40), (40, 40)]);
    assert_eq!(checkpoint.tensors().map(|(_, entry)| entry.num_elements()).sum::<usize>(), 5 + 10);
}

#[test]
fn a_wrong_shape_says_both() {
    for shape in [&[3, 2][..], &[6], &[2, 3, 1], &[2, 4]] {
        let error = error_of(&[(SINGLE, &tensors(&[("layers.0.weight", shape), TINY[1], TINY[2]]))]);
        let found = format!("{shape:?}");
        assert_error!(error, CheckpointError::Shape { .. }, "`layers.0.weight`", "[2, 3]", &found, SINGLE);
    }
}

#[test]
fn a_wrong_dtype_is_named() {
    for (dtype, size) in [("I64", 8), ("I32", 4), ("U8", 1), ("F8_E4M3", 1), ("F64", 8), ("BOOL", 1)] {
        let end = 32 + 2 * size;
        let header = format!(
            r#"{{"layers.0.weight":{{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}},
                 "layers.0.bias":{{"dtype":"F32","shape":[2],"data_offsets":[24,32]}},
                 "norm":{{"dtype":"{dtype}","shape":[2],"data_offsets":[32,{end}]}}}}"#
        );
        let error = error_of(&[(SINGLE, &file(&header, &vec![0; end]))]);
        assert_error!(error, CheckpointError::Dtype { .. }, "`norm`", dtype, SINGLE);
    }
}

#[test]
fn nan_is_named() {
    let mut bytes = tensors(&TINY);
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = error_of(&[(SINGLE, &bytes)]);
    assert_error!(error, CheckpointError::NonFinite { count: 1, first: 1, .. }, "`norm`", SINGLE, "index 1");
}

#[test]
fn what_is_not_a_regular_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(SINGLE)).unwrap();
    assert_error!(Checkpoint::open(folder.path()).unwrap_err(), CheckpointError::NotAFile { .. }, SINGLE);
}

#[cfg(unix)]
#[test]
fn a_pipe_does_not_block() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join(SINGLE);
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|status| status.success()) {
        assert_error!(Checkpoint::open(folder.path()).unwrap_err(), CheckpointError::NotAFile { .. }, SINGLE);
    }
}

/// `layers` in one shard, `norm` in the other.
fn shards() -> [Vec<u8>; 2] {
    [tensors(&TINY[..2]), tensors(&TINY[2..])]
}

/// An index that says where each tensor of [`TINY`] is.
fn index(shards: [&str; 3]) -> Vec<u8> {
    let map: serde_json::Map<_, _> =
        TINY.iter().zip(shards).map(|((name, _), shard)| ((*name).to_owned(), shard.into())).collect();
    serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string().into_bytes()
}

#[test]
fn shards_load_as_one_file() {
    let [first, second] = shards();
    let index = index(["a-1", "a-1", "a-2"]);
    let sharded = load_tiny(&[(INDEX, &index), ("a-1", &first), ("a-2", &second)]).unwrap();
    let whole = load_tiny(&[(SINGLE, &tensors(&TINY))]).unwrap();
    let input = Tensor::<1>::ones([3], &Device::flex());
    assert_close("layer", &sharded.layers[0].forward(input.clone()), &whole.layers[0].forward(input), 0.0);
    assert_close("norm", &sharded.norm.val(), &whole.norm.val(), 0.0);
}

#[test]
fn missing_shards_are_listed_together() {
    let index = index(["a-1", "a-2", "a-3"]);
    let error = error_of(&[(INDEX, &index), ("a-1", &tensors(&TINY[..1]))]);
    assert_error!(error, CheckpointError::ShardMissing { .. }, "`a-2`", "`a-3`", INDEX);
}

#[test]
fn a_shard_stays_in_the_folder() {
    let [first, second] = shards();
    let long = "x".repeat(256);
    for name in ["../x", "/etc/passwd", "a/b", "a\\b", "C:x", "..", ".", "", ".hidden", "a\0b", "a b", "é", &long] {
        let index = index(["a-1", "a-1", name]);
        let error = error_of(&[(INDEX, &index), ("a-1", &first), ("x", &second)]);
        assert_error!(error, CheckpointError::ShardName { .. }, "`norm`", &format!("{name:?}"), INDEX);
    }
}

#[test]
fn the_shards_decide_what_is_there() {
    let [first, second] = shards();
    // The index says the wrong shard.
    let wrong = index(["a-1", "a-2", "a-1"]);
    let loaded = load_tiny(&[(INDEX, &wrong), ("a-1", &first), ("a-2", &second)]).unwrap();
    assert_eq!(values(loaded.norm.val()), [0.0, 1.0]);
    // A shard lacks what the index promises: `norm`, which the model needs.
    let lacking = index(["a-1", "a-1", "a-1"]);
    assert_error!(error_of(&[(INDEX, &lacking), ("a-1", &first)]), CheckpointError::Missing { .. }, "`norm`");
    // One name in two shards: the index decides, whichever comes last.
    for (named, other) in [("a-1", "a-2"), ("a-2", "a-1")] {
        let twice = index([other, other, named]);
        let mut wrong = tensors(&TINY);
        let end = wrong.len();
        wrong[end - 4..].copy_from_slice(&9.0_f32.to_le_bytes());
        let loaded = load_tiny(&[(INDEX, &twice), (named, &second), (other, &wrong)]).unwrap();
        assert_eq!(values(loaded.norm.val()), [0.0, 1.0], "{named}");
    }
}

#[test]
fn a_tensor_that_only_the_index_names_is_warned_of() {
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
    assert!(checkpoint.load(tiny(), &LoadOptions::default(), |_| ()).is_ok());
}

#[test]
fn an_index_that_is_not_one() {
    for text in ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"norm":1}}"#] {
        assert_error!(error_of(&[(INDEX, text.as_bytes())]), CheckpointError::Index { .. }, INDEX);
    }
    assert_error!(error_of(&[(INDEX, br#"{"weight_map":{}}"#)]), CheckpointError::Missing { .. }, "`norm`");
}

/// Embeddings, and a head that may be the same table.
#[derive(Module, Debug)]
struct Tied {
    embed: Embedding,
    head: Linear,
}

const TIED: LoadOptions<'_> = LoadOptions {
    prefix: "",
    dtype: Some(DType::F32),
    quantize: None,
    activations: Activations::F32,
    tied: &[("head.weight", "embed.weight")],
    as_stored: &[],
};

fn tied(vocab: usize, width: usize) -> Tied {
    let device = Device::flex();
    Tied { embed: Embedding::new(vocab, width, &device), head: Linear::new_without_bias(width, vocab, &device) }
}

#[test]
fn tied_weights_are_one_tensor() {
    let (vocab, width) = (512, 256);
    let folder = folder_with(&[(SINGLE, &tensors(&[("embed.weight", &[vocab, width])]))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let (model, _, kept) = measure(|| checkpoint.load(tied(vocab, width), &TIED, |_| ()).unwrap());
    let table = vocab * width * 4;
    assert!((table..table + table / 10).contains(&kept), "{kept} bytes kept, a table takes {table}");
    let input = Tensor::<2>::ones([1, width], &Device::flex());
    let expected = input.clone().matmul(model.embed.weight.val().transpose());
    assert_close("head", &model.head.forward(input), &expected, 0.0);

    let error = checkpoint.load(tied(vocab, width), &LoadOptions::default(), |_| ()).unwrap_err();
    assert_error!(error, CheckpointError::Missing { .. }, "`head.weight`");
}

#[test]
fn a_head_of_its_own_is_kept_apart() {
    let file = tensors(&[("head.weight", &[3, 2]), ("embed.weight", &[3, 2])]);
    let folder = folder_with(&[(SINGLE, &file)]);
    assert!(Checkpoint::open(folder.path()).unwrap().load(tied(3, 2), &TIED, |_| ()).is_ok());
    // Both missing: the source is named.
    let folder = folder_with(&[(SINGLE, &tensors(&[]))]);
    let error = Checkpoint::open(folder.path()).unwrap().load(tied(3, 2), &TIED, |_| ()).unwrap_err();
    assert_error!(error, CheckpointError::Missing { .. }, "`embed.weight`");
}

#[test]
fn building_a_model_allocates_nothing() {
    let (_, taken, _) = measure(|| tied(32_000, 4096)); // 1 GiB if it did
    assert!(taken < 1 << 16, "{taken} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), header: String) {
        prop_assert!(load_tiny(&[(SINGLE, &bytes)]).is_err());
        prop_assert!(load_tiny(&[(SINGLE, &file(&header, &bytes))]).is_err());
        prop_assert!(load_tiny(&[(INDEX, &bytes)]).is_err());
    }

    #[test]
    fn a_damaged_file_never_panics(
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
        if let Ok(tiny) = load_tiny(&[(SINGLE, &bytes)]) {
            prop_assert!(values(tiny.norm.val()).into_iter().all(f32::is_finite));
        }
    }
}
