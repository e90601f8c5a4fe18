//! Tests of faulty checkpoints: every fault is a typed error that names the file or the tensor, and never a panic.

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use idefics_checkpoint::{Checkpoint, CheckpointError};
use idefics_nn::{Activations, Embedding, Linear, LoadModule, LoadOptions, normal};
use proptest::prelude::*;

use crate::common::{assert_close, values};
use crate::folders::{INDEX, SINGLE, TINY, assert_error, file, folder_with, index, shards, tensors};
use crate::memory::measure;

/// A list of layers and a parameter.
#[derive(Module, Debug)]
struct Tiny {
    layers: Vec<Linear>,
    norm: Param<Tensor<1>>,
}

fn tiny() -> Tiny {
    let device = Device::flex();
    Tiny { layers: vec![Linear::new(3, 2, &device)], norm: normal([2], 0.0, 1.0, &device) }
}

fn load_tiny(files: &[(&str, &[u8])]) -> Result<Tiny, CheckpointError> {
    let folder = folder_with(files);
    Checkpoint::open(folder.path())?.load(tiny(), &LoadOptions::default(), |_| ())
}

fn load_error(files: &[(&str, &[u8])]) -> CheckpointError {
    load_tiny(files).expect_err("the checkpoint has a fault")
}

#[test]
fn loads_valid_file() {
    let tiny = load_tiny(&[(SINGLE, &tensors(&TINY))]).unwrap();
    assert_eq!(values(tiny.norm.val()), [0.0, 1.0]);
    let output = tiny.layers[0].forward(Tensor::<1>::from_floats([1.0, 10.0, 100.0], &Device::flex()));
    assert_eq!(values(output), [210.0, 544.0]); // the weight is [[0, 1, 2], [3, 4, 5]], the bias [0, 1]
}

#[test]
fn error_lists_all_missing_tensors() {
    let error = load_error(&[(SINGLE, &tensors(&TINY[..1]))]);
    assert_error!(error, CheckpointError::Missing { .. }, "2 tensors", "`layers.0.bias`", "`norm`");
}

#[test]
fn unused_tensors_are_ignored_and_listed() {
    let more = [TINY.as_slice(), &[("layers.1.weight", &[2, 3]), ("normal", &[1])]].concat();
    let folder = folder_with(&[(SINGLE, &tensors(&more))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let options = LoadOptions::default();
    assert_eq!(checkpoint.unused(&tiny(), &options), ["layers.1.weight", "normal"]);
    let loaded = checkpoint.load(tiny(), &options, |_| ()).unwrap();
    assert_eq!(values(loaded.norm.val()), [0.0, 1.0]);
    assert_eq!(
        checkpoint.unused(&loaded, &options),
        ["layers.1.weight", "normal"],
        "loading does not change the answer"
    );
}

#[test]
fn error_names_common_prefix_of_tensors() {
    for (prefix, remedy) in [
        ("module.", "k.removeprefix(\"module.\")"),
        ("_orig_mod.", "k.removeprefix(\"_orig_mod.\")"),
        ("base_model.model.", "merge_and_unload"),
    ] {
        let names = TINY.map(|(name, shape)| (format!("{prefix}{name}"), shape));
        let longer: Vec<(&str, &[usize])> = names.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
        let error = load_error(&[(SINGLE, &tensors(&longer))]);
        assert_error!(error, CheckpointError::Prefixed { .. }, &format!("`{prefix}layers.0.weight`"), remedy);
        // A prefix that only one of the missing tensors has is not reported.
        let error = load_error(&[(SINGLE, &tensors(&longer[2..]))]);
        assert_error!(error, CheckpointError::Missing { .. }, "`layers.0.weight`");
    }
}

#[test]
fn computed_tensors_of_old_checkpoints_are_ignored() {
    let strays: [(&str, &[usize]); 2] =
        [("layers.0.self_attn.rotary_emb.inv_freq", &[4]), ("vision_model.embeddings.position_ids", &[1, 9])];
    let folder = folder_with(&[(SINGLE, &tensors(&[TINY.as_slice(), &strays].concat()))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert!(checkpoint.unused(&tiny(), &LoadOptions::default()).is_empty());
    assert!(checkpoint.load(tiny(), &LoadOptions::default(), |_| ()).is_ok());
}

#[test]
fn loads_only_tensors_under_prefix() {
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
fn shape_error_has_expected_and_found_shape() {
    for shape in [&[3, 2][..], &[6], &[2, 3, 1], &[2, 4]] {
        let error = load_error(&[(SINGLE, &tensors(&[("layers.0.weight", shape), TINY[1], TINY[2]]))]);
        let found = format!("{shape:?}");
        assert_error!(error, CheckpointError::Shape { .. }, "`layers.0.weight`", "[2, 3]", &found, SINGLE);
    }
}

#[test]
fn dtype_error_names_dtype() {
    for (dtype, size) in [("I64", 8), ("I32", 4), ("U8", 1), ("F8_E4M3", 1), ("F64", 8), ("BOOL", 1)] {
        let end = 32 + 2 * size;
        let header = format!(
            r#"{{"layers.0.weight":{{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}},
                 "layers.0.bias":{{"dtype":"F32","shape":[2],"data_offsets":[24,32]}},
                 "norm":{{"dtype":"{dtype}","shape":[2],"data_offsets":[32,{end}]}}}}"#
        );
        let error = load_error(&[(SINGLE, &file(&header, &vec![0; end]))]);
        assert_error!(error, CheckpointError::Dtype { .. }, "`norm`", dtype, SINGLE);
    }
}

#[test]
fn nan_error_names_tensor_and_index() {
    let mut bytes = tensors(&TINY);
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = load_error(&[(SINGLE, &bytes)]);
    assert_error!(error, CheckpointError::NonFinite { count: 1, first: 1, .. }, "`norm`", SINGLE, "index 1");
}

#[test]
fn shards_load_like_one_file() {
    let [first, second] = shards();
    let index = index(["a-1", "a-1", "a-2"]);
    let sharded = load_tiny(&[(INDEX, &index), ("a-1", &first), ("a-2", &second)]).unwrap();
    let whole = load_tiny(&[(SINGLE, &tensors(&TINY))]).unwrap();
    let input = Tensor::<1>::ones([3], &Device::flex());
    assert_close("layer", &sharded.layers[0].forward(input.clone()), &whole.layers[0].forward(input), 0.0);
    assert_close("norm", &sharded.norm.val(), &whole.norm.val(), 0.0);
}

#[test]
fn tensor_only_in_index_is_missing() {
    let [first, _] = shards();
    let lacking = index(["a-1", "a-1", "a-1"]);
    assert_error!(load_error(&[(INDEX, &lacking), ("a-1", &first)]), CheckpointError::Missing { .. }, "`norm`");
}

/// Embeddings, and a head that may be tied to them.
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
fn tied_weights_share_memory() {
    let (vocab, width) = (512, 256);
    let folder = folder_with(&[(SINGLE, &tensors(&[("embed.weight", &[vocab, width])]))]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let (model, _, kept) = measure(|| checkpoint.load(tied(vocab, width), &TIED, |_| ()).unwrap());
    let table = vocab * width * 4;
    assert!((table..table + table / 10).contains(&kept), "{kept} bytes kept; expected about {table}");
    let input = Tensor::<2>::ones([1, width], &Device::flex());
    let expected = input.clone().matmul(model.embed.table().transpose());
    assert_close("head", &model.head.forward(input), &expected, 0.0);

    let error = checkpoint.load(tied(vocab, width), &LoadOptions::default(), |_| ()).unwrap_err();
    assert_error!(error, CheckpointError::Missing { .. }, "`head.weight`");
}

#[test]
fn untied_head_has_own_weights() {
    let mut file = tensors(&[("head.weight", &[3, 2]), ("embed.weight", &[3, 2])]);
    let end = file.len();
    file[end - 4..].copy_from_slice(&9.0_f32.to_le_bytes()); // the last value of the embeddings
    let folder = folder_with(&[(SINGLE, &file)]);
    let model = Checkpoint::open(folder.path()).unwrap().load(tied(3, 2), &TIED, |_| ()).unwrap();
    let input = Tensor::<1>::from_floats([1.0, 10.0], &Device::flex());
    assert_eq!(values(model.head.forward(input)), [10.0, 32.0, 54.0]); // the head has rows [0, 1], [2, 3], [4, 5]
    assert_eq!(values(model.embed.table()), [0.0, 1.0, 2.0, 3.0, 4.0, 9.0]);
    // If both tensors are missing, the error names the source.
    let folder = folder_with(&[(SINGLE, &tensors(&[]))]);
    let error = Checkpoint::open(folder.path()).unwrap().load(tied(3, 2), &TIED, |_| ()).unwrap_err();
    assert_error!(error, CheckpointError::Missing { .. }, "`embed.weight`");
}

#[test]
fn building_a_model_allocates_no_weights() {
    let (_, taken, _) = measure(|| tied(32_000, 4096)); // 1 GiB if weights were allocated
    assert!(taken < 1 << 16, "{taken} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn damaged_file_never_gives_non_finite_weights(
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
