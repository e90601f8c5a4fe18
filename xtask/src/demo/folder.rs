//! Writes a model folder in the Hugging Face layout: configuration, processor and chat template.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use idefics_checkpoint::write_atomically;
use serde_json::{Value, json};

use super::tokenizer::{END_OF_UTTERANCE, SPECIAL_TOKENS, special_id};

/// Limits on the sides of processed images, in pixels: the maximum of the longest side, and the minimum of the shortest
/// side. Larger images are shrunk and smaller images enlarged.
pub(super) const SIDES: (usize, usize) = (128, 64);
/// Side of a patch, in pixels.
pub(super) const PATCH: usize = 8;
/// Number of resampler latents, and thus tokens, per image.
pub(super) const N_LATENTS: usize = 16;

/// The chat template of the public chat checkpoints.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{message['role'].capitalize()}}{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

/// Returns the contents of `config.json`.
pub(super) fn config(vocab_size: usize) -> Value {
    let width = 128;
    json!({
        "architectures": ["Idefics2ForConditionalGeneration"],
        "model_type": "idefics2",
        "image_token_id": special_id("<image>"),
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "model_type": "idefics2",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIDES.0,
            "patch_size": PATCH,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6
        },
        "perceiver_config": {
            "model_type": "idefics2",
            "hidden_size": width,
            "resampler_n_latents": N_LATENTS,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 32,
            "num_key_value_heads": 4
        },
        "text_config": {
            "model_type": "mistral",
            "vocab_size": vocab_size,
            "hidden_size": width,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5,
            "sliding_window": null,
            "pad_token_id": special_id("<unk>")
        }
    })
}

/// Writes all files except the weights and the tokenizer.
pub(super) fn write(folder: &Path, vocab_size: usize) -> Result<()> {
    let eos = [special_id("</s>"), special_id(END_OF_UTTERANCE)];
    let bad_words = [[special_id("<fake_token_around_image>")], [special_id("<image>")]];
    write_json(
        folder,
        "generation_config.json",
        &json!({
            "bos_token_id": special_id("<s>"),
            "eos_token_id": eos,
            "pad_token_id": special_id("<unk>"),
            "bad_words_ids": bad_words
        }),
    )?;
    write_json(
        folder,
        "preprocessor_config.json",
        &json!({
            "image_processor_type": "Idefics2ImageProcessor",
            "processor_class": "Idefics2Processor",
            "do_convert_rgb": true,
            "do_resize": true,
            "size": {"longest_edge": SIDES.0, "shortest_edge": SIDES.1},
            "resample": 2,
            "do_image_splitting": false,
            "do_rescale": true,
            "rescale_factor": 1.0 / 255.0,
            "do_normalize": true,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "do_pad": true
        }),
    )?;
    write_json(
        folder,
        "processor_config.json",
        &json!({"processor_class": "Idefics2Processor", "image_seq_len": N_LATENTS}),
    )?;
    write_json(folder, "chat_template.json", &json!({"chat_template": CHAT_TEMPLATE}))?;
    write_json(
        folder,
        "tokenizer_config.json",
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "Idefics2Processor",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "additional_special_tokens": SPECIAL_TOKENS[3..],
            "clean_up_tokenization_spaces": false,
            "padding_side": "left",
            "model_max_length": 2048
        }),
    )?;
    // This file is written last. If it exists, the folder is complete.
    write_json(folder, "config.json", &config(vocab_size))
}

fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(write_atomically(&folder.join(name), |file| file.write_all(&text))?)
}
