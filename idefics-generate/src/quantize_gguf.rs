//! Writes a model of the Idefics3 family as GGUF files.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use idefics_checkpoint::gguf::{
    GgufError, GgufExport, GgufFault, GgufMix, ModelFile, NewRope, NewTensor, NewText, NewVision, TokenizerFiles, write,
};
use idefics_checkpoint::{Checkpoint, CheckpointError, PicklePolicy};
use idefics_nn::Activation;
use idefics_processor::Processor;
use idefics_processor::image::ImageSize;
use idefics_text::{RopeParameters, TextConfig};
use serde_json::Value;

use crate::config::read_json;
use crate::quantize::{copy_files_beside, copy_other_files, write_folder};
use crate::{Error, Idefics3Config, ModelConfig, folder, load_model, load_processor};

/// Writes the model of the folder `source`, which must be of the Idefics3 family, to the folder `target`. The text
/// model becomes `model-MIX.gguf`. The vision tower and the connector become `mmproj-model-MIX.gguf`, with at least
/// eight bits per weight.
///
/// `progress` is called after each tensor with the bytes written so far and the total number of bytes. If `progress`
/// returns an error, the work stops. `target` is created in the same way as by
/// [`quantize_folder`](crate::quantize_folder). The other files of the model are copied, except for `config.json`.
/// llama.cpp reads only the GGUF files. This crate prefers the copied files to the metadata of the GGUF files.
///
/// # Errors
/// [`Error::Checkpoint`] with [`GgufFault::Export`] for a model that GGUF files cannot hold, [`Error::Write`] if
/// `target` already exists or cannot be written, and the errors of [`load_model`].
pub fn quantize_to_gguf(
    source: &Path,
    target: &Path,
    mix: GgufMix,
    pickles: PicklePolicy,
    device: &Device,
    mut progress: impl FnMut(u64, u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let config = ModelConfig::from_folder(source)?;
    let Some(config) = config.downcast_ref::<Idefics3Config>() else {
        let family = config.family().model_type();
        return Err(refused(source, format!("its `model_type` is {family:?}; expected idefics3 or smolvlm")));
    };
    let checkpoint = Checkpoint::open_with(source, pickles)?;
    let processor = load_processor(source)?;
    let json = [ModelFile::Tokenizer, ModelFile::TokenizerConfig, ModelFile::GenerationConfig];
    let [tokenizer, tokenizer_config, generation_config] = json.map(|file| content(source, file));
    let files = TokenizerFiles {
        folder: source,
        tokenizer: &tokenizer?,
        tokenizer_config: &tokenizer_config?,
        generation_config: &generation_config?,
        chat_template: processor.chat_template().map(|template| template.source()),
    };
    let text = new_text(source, config)?;
    let vision = (!config.text_only).then(|| new_vision(config, &processor));
    let name = source.file_stem().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    let export = GgufExport { checkpoint: &checkpoint, name: &name, text: &text, vision: vision.as_ref(), mix };
    let tokenizer = files.metadata(text.vocab).map_err(CheckpointError::from)?;
    let text_tensors = export.text_tensors()?;
    let vision_tensors = vision.as_ref().map(|vision| export.vision_tensors(vision)).transpose()?;

    let total = |tensors: &[NewTensor<'_>]| tensors.iter().map(|tensor| tensor.len_bytes() as u64).sum::<u64>();
    let bytes_total = total(&text_tensors) + vision_tensors.as_deref().map_or(0, total);
    let mut bytes_done = 0;
    let mut done = |bytes: u64| -> Result<(), Error> {
        bytes_done += bytes;
        progress(bytes_done, bytes_total)
    };
    write_folder(target, |out| {
        write(
            &out.join(format!("model-{}.gguf", mix.name())),
            &export.text_metadata(tokenizer),
            &text_tensors,
            &mut done,
        )?;
        if let (Some(vision), Some(tensors)) = (&vision, &vision_tensors) {
            let path = out.join(format!("mmproj-model-{}.gguf", mix.of_vision().name()));
            write(&path, &export.vision_metadata(vision), tensors, &mut done)?;
        }
        match folder::gguf(source)? {
            Some(model) => copy_files_beside(&model, out)?,
            None => {
                copy_other_files(source, out)?;
                let _ = fs::remove_file(out.join(ModelFile::Config.name())); // the metadata has its content
            }
        }
        load_model(out, device, None, |_| ()).map(|_| ())
    })
}

/// Returns the error for a model that GGUF files cannot hold.
fn refused(source: &Path, reason: String) -> Error {
    CheckpointError::from(GgufError { path: source.to_owned(), fault: GgufFault::Export { reason } }).into()
}

/// Reads the content of a JSON file of the model, or builds it from the metadata of a GGUF file. Returns null if there
/// is neither.
fn content(source: &Path, file: ModelFile) -> Result<Value, Error> {
    if let Some((_, content)) = folder::in_metadata(source, file)? {
        return Ok(content);
    }
    let path = folder::sibling_path(source, file.name());
    if file != ModelFile::Tokenizer {
        return if path.is_file() { read_json(&path) } else { Ok(Value::Null) };
    }
    // `read_json` limits the size of files, but tokenizers may be larger. `load_processor` has checked this one.
    let bytes = fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    serde_json::from_slice(&bytes).map_err(|error| Error::ModelFile { path, reason: error.to_string() })
}

fn new_text(source: &Path, config: &Idefics3Config) -> Result<NewText, Error> {
    let text = &config.text_config;
    if text.hidden_act != Activation::Silu {
        return Err(refused(source, "the activation of its decoder is not silu".to_owned()));
    }
    let (theta, rope) = rope(text).map_err(|kind| {
        let reason = format!("its rotary positions are scaled by {kind:?}; expected none, linear or llama3");
        refused(source, reason)
    })?;
    Ok(NewText {
        layers: text.num_hidden_layers,
        hidden: text.hidden_size,
        intermediate: text.intermediate_size,
        heads: text.num_attention_heads,
        kv_heads: text.n_kv_heads(),
        head_dim: text.head_dim(),
        context: text.max_position_embeddings,
        vocab: text.vocab_size,
        is_tied: config.tie_word_embeddings,
        norm_eps: text.rms_norm_eps as f32,
        rope_theta: theta as f32,
        rope,
    })
}

/// Returns the base and the scaling of the rotary frequencies. The error is the name of a scaling that GGUF files
/// cannot hold. The configuration has been validated.
fn rope(text: &TextConfig) -> Result<(f64, NewRope), String> {
    let sections = [&text.rope_scaling, &text.rope_parameters];
    let given = sections.into_iter().flatten().find(|section| **section != RopeParameters::default());
    let parameters = given.cloned().unwrap_or_default();
    let theta = parameters.rope_theta.or(text.rope_theta).unwrap_or(10_000.0);
    let factor = parameters.factor.unwrap_or(1.0);
    let rope = match parameters.rope_type.as_deref().or(parameters.legacy_type.as_deref()).unwrap_or("default") {
        "default" => NewRope::Plain,
        "linear" => NewRope::Linear(factor as f32),
        "llama3" => {
            let (low, high) = (parameters.low_freq_factor.unwrap_or(1.0), parameters.high_freq_factor.unwrap_or(4.0));
            let context = parameters.original_max_position_embeddings.or(text.original_max_position_embeddings);
            let context = context.unwrap_or(text.max_position_embeddings) as f64;
            let divisor = |j: usize| {
                let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * j as f64 / text.head_dim() as f64);
                // Source: `LlamaModel.generate_extra_tensors` of `convert_hf_to_gguf.py`.
                match context / wavelength {
                    turns if turns > high => 1.0,
                    turns if turns < low => factor,
                    turns => {
                        let smooth = (turns - low) / (high - low);
                        1.0 / ((1.0 - smooth) / factor + smooth)
                    }
                }
            };
            NewRope::Divisors((0..text.head_dim() / 2).map(|j| divisor(j) as f32).collect())
        }
        other => return Err(other.to_owned()),
    };
    Ok((theta, rope))
}

fn new_vision(config: &Idefics3Config, processor: &Processor) -> NewVision {
    let (vision, images) = (&config.vision_config, processor.image_config());
    let longest_edge = match images.size {
        ImageSize::LongestEdge { longest_edge } => longest_edge as usize,
        _ => 4 * vision.image_size,
    };
    NewVision {
        layers: vision.num_hidden_layers,
        hidden: vision.hidden_size,
        intermediate: vision.intermediate_size,
        heads: vision.num_attention_heads,
        image_size: vision.image_size,
        patch_size: vision.patch_size,
        norm_eps: vision.layer_norm_eps as f32,
        scale_factor: config.scale_factor,
        longest_edge,
        image_mean: images.image_mean.map(|mean| mean as f32),
        image_std: images.image_std.map(|std| std as f32),
    }
}
