//! Tests of GGUF files as checkpoints: names, shapes, the order of rotary rows, and JSON files built from the metadata.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use idefics_checkpoint::gguf::{GgufError, GgufModel, GgufPaths, ModelFile};
use idefics_checkpoint::{Checkpoint, CheckpointError, CheckpointWarning, Dtype};
use serde_json::Value;
use tempfile::TempDir;

use crate::gguf::Writer;

const TOKENS: [&str; 8] = ["a", "b", "Ġ", "Ġa", "<s>", "</s>", "<image>", "<end_of_utterance>"];

/// Writes a text model with one layer: hidden width 8, two heads of width 4, one key/value head, feed-forward width 12,
/// and 8 tokens.
pub(crate) fn text() -> Writer {
    let matrix = |writer: Writer, name: &str, dims: [u64; 2]| writer.f32s(name, &dims, |i| i as f32);
    let keys = Writer::new()
        .text("general.architecture", "llama")
        .number("llama.block_count", 1)
        .number("llama.context_length", 64)
        .number("llama.embedding_length", 8)
        .number("llama.feed_forward_length", 12)
        .number("llama.attention.head_count", 2)
        .number("llama.attention.head_count_kv", 1)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .float("llama.rope.freq_base", 100_000.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &TOKENS)
        .numbers("tokenizer.ggml.token_type", &[1, 1, 1, 1, 3, 3, 3, 4])
        .texts("tokenizer.ggml.merges", &["Ġ a"])
        .number("tokenizer.ggml.bos_token_id", 4)
        .number("tokenizer.ggml.eos_token_id", 5)
        .text("tokenizer.chat_template", "{{ messages }}");
    let norms = keys.f32s("output_norm.weight", &[8], |_| 1.0).f32s("blk.0.attn_norm.weight", &[8], |_| 1.0);
    let norms = norms.f32s("blk.0.ffn_norm.weight", &[8], |_| 1.0);
    [
        ("token_embd.weight", [8, 8]),
        ("blk.0.attn_q.weight", [8, 8]),
        ("blk.0.attn_k.weight", [8, 4]),
        ("blk.0.attn_v.weight", [8, 4]),
        ("blk.0.attn_output.weight", [8, 8]),
        ("blk.0.ffn_gate.weight", [8, 12]),
        ("blk.0.ffn_up.weight", [8, 12]),
        ("blk.0.ffn_down.weight", [12, 8]),
    ]
    .into_iter()
    .fold(norms, |writer, (name, dims)| matrix(writer, name, dims))
}

/// Writes a vision tower with one layer: width 4, feed-forward width 6, 2 × 2 patches of 2 × 2 pixels, and scale factor
/// 2. With `is_swapped`, the names of the two feed-forward matrices are swapped, as in files of older converters.
pub(crate) fn mmproj(is_swapped: bool, epsilon: f32) -> Writer {
    let (up, down) = if is_swapped { ("ffn_down", "ffn_up") } else { ("ffn_up", "ffn_down") };
    let mut writer = Writer::new()
        .text("general.architecture", "clip")
        .text("clip.projector_type", "idefics3")
        .bool("clip.has_vision_encoder", true)
        .bool("clip.use_gelu", true)
        .number("clip.vision.image_size", 4)
        .number("clip.vision.patch_size", 2)
        .number("clip.vision.embedding_length", 4)
        .number("clip.vision.feed_forward_length", 6)
        .number("clip.vision.block_count", 1)
        .number("clip.vision.projection_dim", 8)
        .number("clip.vision.attention.head_count", 2)
        .float("clip.vision.attention.layer_norm_epsilon", epsilon)
        .number("clip.vision.projector.scale_factor", 2)
        .floats("clip.vision.image_mean", &[0.5, 0.5, 0.4])
        .f32s("v.patch_embd.weight", &[2, 2, 3, 4], |i| i as f32)
        .f32s("v.position_embd.weight", &[4, 4], |i| i as f32)
        .f32s("mm.model.fc.weight", &[16, 8], |i| i as f32)
        .f32s(&format!("v.blk.0.{up}.weight"), &[4, 6], |_| 1.0)
        .f32s(&format!("v.blk.0.{up}.bias"), &[6], |_| 1.0)
        .f32s(&format!("v.blk.0.{down}.weight"), &[6, 4], |_| 2.0)
        .f32s(&format!("v.blk.0.{down}.bias"), &[4], |_| 2.0);
    for part in ["attn_q", "attn_k", "attn_v", "attn_out"] {
        writer = writer.f32s(&format!("v.blk.0.{part}.weight"), &[4, 4], |i| i as f32);
        writer = writer.f32s(&format!("v.blk.0.{part}.bias"), &[4], |_| 0.0);
    }
    for name in ["v.patch_embd.bias", "v.blk.0.ln1.weight", "v.blk.0.ln1.bias", "v.blk.0.ln2.weight"] {
        writer = writer.f32s(name, &[4], |_| 1.0);
    }
    for name in ["v.blk.0.ln2.bias", "v.post_ln.weight", "v.post_ln.bias"] {
        writer = writer.f32s(name, &[4], |_| 1.0);
    }
    writer
}

pub(crate) fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn floats(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = checkpoint.tensor(name).unwrap().elements().into_owned();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn files_of(model: &GgufModel) -> Result<BTreeMap<&'static str, Value>, GgufError> {
    let file = |file: ModelFile| Ok(model.file(file)?.map(|content| (file.name(), content)));
    ModelFile::ALL.into_iter().filter_map(|name| file(name).transpose()).collect()
}

fn files(path: &Path) -> BTreeMap<&'static str, Value> {
    files_of(&GgufModel::find(path).unwrap().unwrap()).unwrap()
}

fn message(path: &Path) -> String {
    match Checkpoint::open(path) {
        Err(CheckpointError::Gguf(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn text_tensors_have_the_names_of_the_checkpoint() {
    let folder = folder(&[("m.gguf", text().bytes())]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.tensors().count(), 11);
    let shape = |name: &str| checkpoint.tensor(&format!("model.text_model.{name}")).unwrap().shape.clone();
    assert_eq!(shape("embed_tokens.weight"), [8, 8]);
    assert_eq!(shape("layers.0.mlp.down_proj.weight"), [8, 12]);
    assert_eq!(shape("layers.0.self_attn.k_proj.weight"), [4, 8]);
    assert_eq!(shape("norm.weight"), [8]);
    assert!(checkpoint.tensor("lm_head.weight").is_none() && checkpoint.warnings().is_empty());
    // A plain tensor is borrowed from the map. The rows of the query projection are reordered: 0, 2, 1, 3 in each head.
    let v = checkpoint.tensor("model.text_model.layers.0.self_attn.v_proj.weight").unwrap();
    assert!(v.is_plain() && v.bytes().len() == 128 && v.file == "m.gguf");
    let q = floats(&checkpoint, "model.text_model.layers.0.self_attn.q_proj.weight");
    let first_of_rows: Vec<f32> = q.iter().step_by(8).copied().collect();
    assert_eq!(first_of_rows, [0.0, 16.0, 8.0, 24.0, 32.0, 48.0, 40.0, 56.0]);
}

#[test]
fn json_files_are_built_from_the_metadata() {
    let folder = folder(&[("m.gguf", text().bytes())]);
    for path in [folder.path(), &folder.path().join("m.gguf")] {
        let files = files(path);
        let (config, tokenizer) = (&files["config.json"], &files["tokenizer.json"]);
        let text = &config["text_config"];
        assert_eq!((&config["text_only"], &config["tie_word_embeddings"]), (&true.into(), &true.into()));
        let sizes = ["vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_key_value_heads"];
        assert_eq!(sizes.map(|key| text[key].as_u64().unwrap()), [8, 8, 12, 4, 1]);
        assert_eq!((&text["rms_norm_eps"], &text["rope_theta"]), (&1e-5.into(), &100_000.0.into()));
        assert_eq!(tokenizer["model"]["vocab"]["Ġa"], 3);
        assert_eq!(tokenizer["model"]["merges"][0][1], "a");
        let special: Vec<bool> =
            tokenizer["added_tokens"].as_array().unwrap().iter().map(|token| token["special"] == true).collect();
        assert_eq!(special, [true, true, true, false]);
        assert_eq!(files["tokenizer_config.json"]["eos_token"], "</s>");
        assert_eq!(files["tokenizer_config.json"]["chat_template"], "{{ messages }}");
        assert_eq!(files["generation_config.json"]["eos_token_id"], serde_json::json!([5, 7]));
        assert!(!files.contains_key("preprocessor_config.json"));
    }
}

#[test]
fn vision_tower_in_the_same_folder_is_part_of_the_model() {
    for is_swapped in [false, true] {
        let towers = [("mmproj-m.gguf", mmproj(is_swapped, 1e-5).bytes()), ("m.gguf", text().bytes())];
        let folder = folder(&towers);
        let checkpoint = Checkpoint::open(&folder.path().join("m.gguf")).unwrap();
        assert_eq!(checkpoint.tensors().count(), 11 + 22);
        let shape = |name: &str| checkpoint.tensor(name).unwrap().shape.clone();
        assert_eq!(shape("model.vision_model.embeddings.patch_embedding.weight"), [4, 3, 2, 2]);
        assert_eq!(shape("model.connector.modality_projection.proj.weight"), [8, 16]);
        assert_eq!(shape("model.vision_model.encoder.layers.0.mlp.fc1.weight"), [6, 4]);
        assert_eq!(shape("model.vision_model.encoder.layers.0.mlp.fc2.bias"), [4]);
        assert_eq!(floats(&checkpoint, "model.vision_model.encoder.layers.0.mlp.fc1.bias"), [1.0; 6]);
        assert!(matches!(checkpoint.warnings(), [CheckpointWarning::GgufEpsilon { found, .. }] if found == "1e-5"));

        let files = files(folder.path());
        let config = &files["config.json"];
        assert_eq!((&config["image_token_id"], &config["scale_factor"]), (&6.into(), &2.into()));
        assert_eq!(config["vision_config"]["layer_norm_eps"], 1e-6);
        assert_eq!(files["processor_config.json"]["image_seq_len"], 1);
        let images = &files["preprocessor_config.json"];
        assert_eq!((&images["size"]["longest_edge"], &images["image_mean"][2]), (&16.into(), &0.4.into()));
    }
}

#[test]
fn rows_of_blocks_are_dequantised() {
    // Each row is one Q8_0 block with the scale 1.0 (0x3c00). All codes of a row are the index of the row.
    let rows: Vec<u8> = (0..8).flat_map(|row| [vec![0, 0x3c], vec![row; 32]].concat()).collect();
    let wide = Writer::new()
        .text("general.architecture", "llama")
        .number("llama.block_count", 1)
        .number("llama.embedding_length", 32)
        .number("llama.attention.head_count", 4)
        .tensor("blk.0.attn_q.weight", &[32, 8], 8, rows.clone())
        .tensor("blk.0.attn_v.weight", &[32, 8], 8, rows);
    let folder = folder(&[("m.gguf", wide.bytes())]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let entry = |name: &str| checkpoint.tensor(&format!("model.text_model.layers.0.self_attn.{name}.weight")).unwrap();
    let first = |name: &str| -> Vec<f32> {
        let entry = entry(name);
        let mut values = vec![0.0; 256];
        entry.read_rows(0..8, &mut values);
        values.iter().step_by(32).copied().collect()
    };
    assert_eq!(first("v_proj"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(first("q_proj"), [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
    let v = entry("v_proj");
    assert_eq!((v.dtype, v.type_name().as_str(), v.len_bytes(), v.is_plain()), (Dtype::F32, "Q8_0", 272, false));
}

#[test]
fn errors_name_what_is_not_supported() {
    let cases = [
        (Writer::new(), "no `general.architecture`"),
        (Writer::new().text("general.architecture", "gemma3"), "is \"gemma3\"; expected `llama`"),
        (mmproj(false, 1e-6), "give the file of the text model"),
        (
            text().f32s("blk.0.attn_q.bias", &[8], |_| 0.0),
            "`blk.0.attn_q.bias`: it is not a tensor of the supported llama models",
        ),
        (text().f32s("blk.1.attn_v.weight", &[8, 4], |_| 0.0), "`blk.1.attn_v.weight`"),
        (text().f32s("blk.00.attn_v.weight", &[8, 4], |_| 0.0), "`blk.00.attn_v.weight`"),
        (text().number("llama.attention.value_length", 8), "the width of a head"),
    ];
    for (writer, expected) in cases {
        let folder = folder(&[("m.gguf", writer.bytes())]);
        let found = message(folder.path());
        assert!(found.contains(expected) && found.contains("m.gguf"), "{found:?} instead of {expected:?}");
    }
    let of_files = |writer: Writer| {
        let folder = folder(&[("m.gguf", writer.bytes())]);
        files_of(&GgufModel::find(folder.path()).unwrap().unwrap()).unwrap_err().to_string()
    };
    assert!(of_files(text().text("llama.rope.scaling.type", "yarn")).contains("\"yarn\""));
    assert!(of_files(text().number("llama.vocab_size", 9)).contains("the number of rows of `token_embd.weight`"));
    assert!(
        of_files(text().f32s("rope_freqs.weight", &[2], |_| 3.0))
            .contains("its values are not those of Llama 3's rope scaling")
    );
    assert!(of_files(text().number("tokenizer.ggml.padding_token_id", 8)).contains("the number of tokens"));
}

#[test]
fn rejects_files_that_do_not_form_one_model() {
    let two = folder(&[("a.gguf", text().bytes()), ("b.gguf", text().bytes())]);
    assert!(message(two.path()).contains("several models: a.gguf, b.gguf; give the path of one file"));
    assert!(Checkpoint::open(&two.path().join("b.gguf")).is_ok());

    let tower = folder(&[("mmproj.gguf", mmproj(false, 1e-6).bytes())]);
    assert!(message(tower.path()).contains("no text model"));
    assert!(message(&tower.path().join("mmproj.gguf")).contains("vision tower"));

    let towers = ["mmproj-a.gguf", "b-mmproj.gguf"].map(|name| (name, mmproj(false, 1e-6).bytes()));
    let towers = folder(&[towers[0].clone(), towers[1].clone(), ("m.gguf", text().bytes())]);
    assert!(message(towers.path()).contains("choose one with --mmproj"));
    let paths = GgufPaths { text: towers.path().join("m.gguf"), mmproj: Some(towers.path().join("mmproj-a.gguf")) };
    assert!(GgufModel::open(paths).is_ok());

    let other = mmproj(false, 1e-6).number("clip.vision.projection_dim", 9);
    assert!(message(folder(&[("mmproj.gguf", other.bytes()), ("m.gguf", text().bytes())]).path()).contains("twice"));

    // Weights in another format take precedence.
    let both =
        folder(&[("m.gguf", text().bytes()), ("config.json", b"{}".to_vec()), ("model.safetensors", vec![0; 9])]);
    assert_eq!(GgufPaths::find(both.path()).unwrap(), None);
    assert_eq!(GgufPaths::find(Path::new("not there")).unwrap(), None);
}

#[test]
fn json_files_in_the_folder_take_precedence_except_config() {
    let text = text().bytes();
    let folder = folder(&[("m.gguf", text), ("tokenizer.json", b"{}".to_vec()), ("config.json", b"{}".to_vec())]);
    let model = GgufModel::find(folder.path()).unwrap().unwrap();
    assert_eq!(model.file_unless_present(ModelFile::Tokenizer).unwrap(), None);
    assert!(model.file_unless_present(ModelFile::Config).unwrap().is_some());
    assert!(model.file_unless_present(ModelFile::TokenizerConfig).unwrap().is_some());
}
