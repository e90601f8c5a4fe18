//! Builds the JSON files of a model, except those of the tokenizer, from the metadata of its GGUF files.

use serde_json::{Map, Value, json};

use super::model::{LAYER_NORM_EPS, TextSizes, Vision};
use super::{GgufError, GgufFault, GgufModel, Metadata};

/// The token whose embeddings are replaced by image vectors.
const IMAGE: &str = "<image>";
const END_OF_UTTERANCE: &str = "<end_of_utterance>";

/// Builds `config.json` of the family Idefics3.
pub(super) fn config(model: &GgufModel) -> Result<Value, GgufError> {
    let metadata = model.text.metadata();
    let is_tied = model.text.tensor("output.weight").is_none();
    let mut config = json!({
        "model_type": "idefics3",
        "tie_word_embeddings": is_tied,
        "text_config": text_config(model, &metadata)?,
    });
    let more = match &model.vision {
        None => json!({ "text_only": true }),
        Some(vision) => {
            let image_token_id = token_id(&metadata, IMAGE)?.ok_or_else(|| {
                metadata.error("tokenizer.ggml.tokens", "without `<image>`", "a vocabulary with `<image>`")
            })?;
            json!({
                "image_token_id": image_token_id,
                "scale_factor": vision.sizes.scale_factor,
                "vision_config": vision_config(vision)?,
            })
        }
    };
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    Ok(config)
}

fn text_config(model: &GgufModel, metadata: &Metadata<'_>) -> Result<Value, GgufError> {
    let TextSizes { layers, hidden, heads, head_dim } = model.text_sizes;
    let embeddings = model.text.tensor("token_embd.weight").and_then(|(tensor, _)| tensor.dims.get(1).copied());
    let vocab_size = embeddings.ok_or_else(|| {
        let (name, reason) = ("token_embd.weight".to_owned(), "it is missing or not a matrix".to_owned());
        model.text.error(GgufFault::Tensor { name, reason })
    })?;
    if let Some(found) = metadata.number("llama.vocab_size")?.filter(|found| *found != vocab_size) {
        let expected = format!("{vocab_size}, the number of rows of `token_embd.weight`");
        return Err(metadata.error("llama.vocab_size", found.to_string(), expected));
    }
    let mut config = json!({
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": metadata.required_number("llama.feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.number("llama.attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.required_number("llama.context_length")?,
        "rms_norm_eps": metadata.float("llama.attention.layer_norm_rms_epsilon")?.map(of_f32).unwrap_or(1e-5),
        "rope_theta": metadata.float("llama.rope.freq_base")?.unwrap_or(10_000.0),
    });
    if let (Some(scaling), Value::Object(config)) = (rope_scaling(model, metadata)?, &mut config) {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    Ok(config)
}

/// Returns the shortest decimal number that rounds to this f32, for example 1e-5 for 9.99999974737875e-6.
fn of_f32(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

fn rope_scaling(model: &GgufModel, metadata: &Metadata<'_>) -> Result<Option<Value>, GgufError> {
    let key = "llama.rope.scaling.type";
    let kind = metadata.text(key)?.unwrap_or("none");
    let divisors = model.text.tensor("rope_freqs.weight");
    match (kind, divisors) {
        ("none", None) => Ok(None),
        ("linear", None) => {
            let factor = metadata.float("llama.rope.scaling.factor")?.unwrap_or(1.0);
            Ok(Some(json!({ "rope_type": "linear", "factor": factor })))
        }
        ("none", Some((tensor, bytes))) => {
            let mut values = vec![0.0; tensor.dims.iter().product()];
            tensor.kind.dequantize(bytes, &mut values);
            let theta = metadata.float("llama.rope.freq_base")?.unwrap_or(10_000.0);
            llama3(&values, theta, model.text_sizes.head_dim).map(Some).ok_or_else(|| {
                let (name, reason) =
                    (tensor.name.clone(), "its values are not those of Llama 3's rope scaling".to_owned());
                model.text.error(GgufFault::Tensor { name, reason })
            })
        }
        (other, None) => Err(metadata.error(key, format!("{other:?}"), "`none` or `linear`")),
        (other, Some(_)) => {
            Err(metadata.error(key, format!("{other:?}"), "`none`, because the file has `rope_freqs.weight`"))
        }
    }
}

/// Finds the rope scaling of Llama 3 that divides the frequencies by these divisors. Returns `None` if there is none.
///
/// Source: `LlamaModel.generate_extra_tensors` of `convert_hf_to_gguf.py`. `LOW`, `HIGH` and `CONTEXT` are the same in
/// all Llama 3 models.
fn llama3(divisors: &[f32], theta: f64, head_dim: usize) -> Option<Value> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const CONTEXT: f64 = 8192.0;
    let factor = f64::from(divisors.iter().copied().reduce(f32::max)?);
    let divisor = |j: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * j as f64 / head_dim as f64);
        match CONTEXT / wavelength {
            turns if turns > HIGH => 1.0,
            turns if turns < LOW => factor,
            turns => {
                let smooth = (turns - LOW) / (HIGH - LOW);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        }
    };
    let is_near = |(j, found): (usize, &f32)| (f64::from(*found) / divisor(j) - 1.0).abs() < 1e-4;
    let is_llama3 = divisors.len() == head_dim / 2 && factor >= 1.0 && divisors.iter().enumerate().all(is_near);
    is_llama3.then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": CONTEXT as u64,
        })
    })
}

fn vision_config(vision: &Vision) -> Result<Value, GgufError> {
    let (metadata, sizes) = (vision.file.metadata(), &vision.sizes);
    Ok(json!({
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": metadata.required_number("clip.vision.attention.head_count")?,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "hidden_act": "gelu_pytorch_tanh",
        // The epsilon in the file is ignored: converters write 1e-5 if the original configuration has no epsilon.
        "layer_norm_eps": LAYER_NORM_EPS,
    }))
}

/// Builds `preprocessor_config.json`.
pub(super) fn preprocessor(vision: &Vision) -> Result<Value, GgufError> {
    let (metadata, tile) = (vision.file.metadata(), vision.sizes.image_size);
    let per_channel = |key: &str| -> Result<Vec<f64>, GgufError> {
        match metadata.floats(key)? {
            None => Ok(vec![0.5; 3]),
            Some(values) if values.len() == 3 => Ok(values.into_iter().map(of_f32).collect()),
            Some(values) => Err(metadata.error(key, format!("{} values", values.len()), "3 values")),
        }
    };
    // Older files do not say to which size pictures are resized. In all public models, this size is four tiles per
    // side.
    let longest_edge = metadata.number("clip.vision.preproc_image_size")?.unwrap_or(4 * tile);
    Ok(json!({
        "image_processor_type": "Idefics3ImageProcessor",
        "do_image_splitting": true,
        "size": { "longest_edge": longest_edge },
        "max_image_size": { "longest_edge": tile },
        "image_mean": per_channel("clip.vision.image_mean")?,
        "image_std": per_channel("clip.vision.image_std")?,
    }))
}

/// Builds `processor_config.json`.
pub(super) fn processor(vision: &Vision) -> Value {
    let sizes = &vision.sizes;
    let side = sizes.image_size / sizes.patch_size / sizes.scale_factor;
    json!({ "image_seq_len": side.saturating_mul(side) })
}

/// Builds `generation_config.json`: the ids of the start, end and padding tokens.
pub(super) fn generation(model: &GgufModel) -> Result<Value, GgufError> {
    let metadata = model.text.metadata();
    let mut config = Map::new();
    let mut ends = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        ends.extend(metadata.number(key)?);
    }
    ends.extend(token_id(&metadata, END_OF_UTTERANCE)?);
    ends.sort_unstable();
    ends.dedup();
    config.insert("eos_token_id".to_owned(), json!(ends));
    for (key, name) in [("bos", "bos_token_id"), ("padding", "pad_token_id")] {
        let id = metadata.number(&format!("tokenizer.ggml.{key}_token_id"))?;
        config.extend(id.map(|id| (name.to_owned(), json!(id))));
    }
    Ok(Value::Object(config))
}

fn token_id(metadata: &Metadata<'_>, token: &str) -> Result<Option<usize>, GgufError> {
    Ok(metadata.texts("tokenizer.ggml.tokens")?.and_then(|tokens| tokens.iter().position(|known| *known == token)))
}
