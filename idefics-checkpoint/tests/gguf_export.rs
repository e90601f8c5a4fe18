//! Tests of writing GGUF files: a written model is read back, and the error for an unsupported model says why.

use std::collections::BTreeMap;
use std::path::Path;

use idefics_checkpoint::gguf::{
    GgufExport, GgufFile, GgufMix, GgufModel, ModelFile, NewRope, NewText, NewVision, TokenizerFiles, write,
};
use idefics_checkpoint::{Checkpoint, CheckpointError};
use idefics_kernels::formats::GgufType;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::gguf_model::{folder, mmproj, text};

/// Returns the sizes of the text model in `gguf_model`.
fn new_text() -> NewText {
    NewText {
        layers: 1,
        hidden: 8,
        intermediate: 12,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        context: 64,
        vocab: 8,
        is_tied: true,
        norm_eps: 1e-5,
        rope_theta: 100_000.0,
        rope: NewRope::Plain,
    }
}

fn new_vision() -> NewVision {
    NewVision {
        layers: 1,
        hidden: 4,
        intermediate: 6,
        heads: 2,
        image_size: 4,
        patch_size: 2,
        norm_eps: 1e-6,
        scale_factor: 2,
        longest_edge: 16,
        image_mean: [0.5, 0.5, 0.4],
        image_std: [0.5; 3],
    }
}

fn source() -> TempDir {
    folder(&[("m.gguf", text().bytes()), ("mmproj-m.gguf", mmproj(false, 1e-6).bytes())])
}

/// Writes the model of `source` with these sizes into a new folder.
fn export(source: &Path, text: &NewText, mix: GgufMix) -> Result<TempDir, CheckpointError> {
    let checkpoint = Checkpoint::open(source).unwrap();
    let model = GgufModel::find(source).unwrap().unwrap();
    let file = |file| model.file(file).unwrap().unwrap();
    let tokenizer_config = file(ModelFile::TokenizerConfig);
    let files = TokenizerFiles {
        folder: source,
        tokenizer: &file(ModelFile::Tokenizer),
        tokenizer_config: &tokenizer_config,
        generation_config: &file(ModelFile::GenerationConfig),
        chat_template: tokenizer_config["chat_template"].as_str(),
    };
    let vision = new_vision();
    let export = GgufExport { checkpoint: &checkpoint, name: "m", text, vision: Some(&vision), mix };
    let tokenizer = files.metadata(text.vocab)?;
    let (target, mut done) = (tempfile::tempdir().unwrap(), 0);
    let mut count = |bytes: u64| -> Result<(), CheckpointError> {
        done += bytes;
        Ok(())
    };
    let tensors = export.text_tensors()?;
    write(&target.path().join("new.gguf"), &export.text_metadata(tokenizer), &tensors, &mut count)?;
    let path = target.path().join("mmproj-new.gguf");
    write(&path, &export.vision_metadata(&vision), &export.vision_tensors(&vision)?, &mut count)?;
    assert!(done > 0);
    Ok(target)
}

fn files(path: &Path) -> BTreeMap<&'static str, Value> {
    let model = GgufModel::find(path).unwrap().unwrap();
    ModelFile::ALL.into_iter().filter_map(|file| Some((file.name(), model.file(file).unwrap()?))).collect()
}

#[test]
fn a_written_model_is_read_back() {
    let source = source();
    let before = Checkpoint::open(source.path()).unwrap();
    let target = export(source.path(), &new_text(), GgufMix::F32).unwrap();
    assert_eq!(files(target.path()), files(source.path()));
    let after = Checkpoint::open(target.path()).unwrap();
    assert!(after.warnings().is_empty());
    let tensors = |checkpoint: &Checkpoint| -> Vec<(String, Vec<usize>, Vec<u8>)> {
        let tensors = checkpoint.tensors();
        tensors.map(|(name, entry)| (name.to_owned(), entry.shape.clone(), entry.elements().into_owned())).collect()
    };
    assert_eq!(tensors(&after), tensors(&before));
}

#[test]
fn rows_that_are_not_whole_blocks_are_written_as_f16() {
    let source = source();
    let target = export(source.path(), &new_text(), GgufMix::Q4_K_M).unwrap();
    let file = GgufFile::open(&target.path().join("new.gguf")).unwrap();
    let kind = |name: &str| file.tensors().find(|tensor| tensor.name == name).unwrap().kind;
    assert_eq!((kind("blk.0.attn_q.weight"), kind("output_norm.weight")), (GgufType::F16, GgufType::F32));
    assert_eq!(file.metadata().number("general.file_type").unwrap(), Some(15));
    assert_eq!(file.metadata().number("tokenizer.ggml.eot_token_id").unwrap(), Some(7));
}

#[test]
fn rope_scaling_is_written() {
    let source = source();
    let text = NewText { rope: NewRope::Linear(2.0), ..new_text() };
    let target = export(source.path(), &text, GgufMix::F16).unwrap();
    assert_eq!(files(target.path())["config.json"]["text_config"]["rope_scaling"]["factor"], 2.0);
    let text = NewText { rope: NewRope::Divisors(vec![1.0, 8.0]), ..new_text() };
    let target = export(source.path(), &text, GgufMix::F16).unwrap();
    let file = GgufFile::open(&target.path().join("new.gguf")).unwrap();
    assert!(file.tensors().any(|tensor| tensor.name == "rope_freqs.weight" && tensor.dims == [2]));
}

#[test]
fn errors_say_why_a_model_cannot_be_written() {
    let source = source();
    let refused = |text: NewText| export(source.path(), &text, GgufMix::F32).unwrap_err().to_string();
    assert!(refused(NewText { layers: 2, ..new_text() }).contains("it has no `model.text_model.layers.1."));
    assert!(refused(NewText { intermediate: 13, ..new_text() }).contains("has shape [12, 8]; expected [13, 8]"));
    assert!(refused(NewText { is_tied: false, ..new_text() }).contains("it has no `lm_head.weight`"));
    assert!(refused(NewText { vocab: 5, ..new_text() }).contains("there are 5 embeddings"));

    let tokenizer = |change: fn(&mut Value)| {
        let mut tokenizer = files(source.path())["tokenizer.json"].clone();
        change(&mut tokenizer);
        let (folder, null) = (source.path(), &Value::Null);
        let files = TokenizerFiles {
            folder,
            tokenizer: &tokenizer,
            tokenizer_config: null,
            generation_config: null,
            chat_template: None,
        };
        files.metadata(8).unwrap_err().to_string()
    };
    assert!(tokenizer(|file| file["model"]["type"] = json!("Unigram")).contains("not a byte-level BPE"));
    assert!(tokenizer(|file| file["model"]["byte_fallback"] = json!(true)).contains("not a byte-level BPE"));
    assert!(tokenizer(|file| file["pre_tokenizer"] = json!({"type": "Whitespace"})).contains("Whitespace"));
}

#[test]
fn an_interrupted_write_leaves_no_file() {
    let source = source();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let text = new_text();
    let export = GgufExport { checkpoint: &checkpoint, name: "m", text: &text, vision: None, mix: GgufMix::F32 };
    let target = tempfile::tempdir().unwrap();
    let stop = |_| Err(CheckpointError::NotFound { folder: "stopped".into() });
    let stopped = write(&target.path().join("new.gguf"), &[], &export.text_tensors().unwrap(), stop);
    assert!(stopped.unwrap_err().to_string().contains("stopped"));
    assert_eq!(target.path().read_dir().unwrap().count(), 0);
}
