"""Writes a model folder of the Idefics3 family as the two GGUF files that llama.cpp uses: text model and mmproj (vision).

Usage: python gguf_model.py FOLDER OUTPUT_FOLDER [--type F16|Q8_0|Q4_1|…] [--older]
Needs: gguf 0.19, numpy, safetensors, torch.

FOLDER has config.json, tokenizer.json, tokenizer_config.json and model.safetensors. Matrices of the text model get the type of
`--type` if their rows consist of whole blocks, otherwise Q8_0 or F16. Norms and biases are F32. `--older` swaps ffn_up and
ffn_down and writes an epsilon of 1e-5, as older converters did.
"""

import argparse
import json
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("output", type=Path)
parser.add_argument("--type", default="F16")
parser.add_argument("--older", action="store_true")
args = parser.parse_args()
args.output.mkdir(parents=True, exist_ok=True)

config = json.loads((args.folder / "config.json").read_text())
text, vision = config["text_config"], config["vision_config"]
weights = load_file(args.folder / "model.safetensors")


def add(writer, name, weight, kind):
    """Add a tensor. Vectors are stored as F32. If the rows are no whole blocks of `kind`, Q8_0 or F16 is used instead."""
    values = weight.to(torch.float32).numpy()
    if values.ndim == 1 or name.startswith(("v.patch_embd", "v.position_embd")):
        kind = Type.F32
    for kind in [kind, Type.Q8_0, Type.F16] if kind != Type.F32 else [kind]:
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            break
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(weight, heads):
    """Reorders rows so that the two rows of a rotary pair are adjacent. Source: `LlamaModel.permute` of `convert_hf_to_gguf.py`."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_text(path, kind):
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base((text.get("rope_parameters") or text).get("rope_theta", 10000.0))
    writer.add_vocab_size(text["vocab_size"])
    writer.add_rope_dimension_count(text.get("head_dim") or text["hidden_size"] // heads)

    tokenizer = json.loads((args.folder / "tokenizer.json").read_text())
    tokens = dict(tokenizer["model"]["vocab"])
    types = dict.fromkeys(tokens.values(), gguf.TokenType.NORMAL)
    for token in tokenizer["added_tokens"]:
        tokens[token["content"]] = token["id"]
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    names = {i: token for token, i in tokens.items()}
    n = text["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(n)])
    writer.add_token_types([types.get(i, gguf.TokenType.UNUSED) for i in range(n)])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    special = json.loads((args.folder / "tokenizer_config.json").read_text())
    content = lambda name: tokens[special[name]["content"] if isinstance(special[name], dict) else special[name]]
    writer.add_bos_token_id(content("bos_token"))
    writer.add_eos_token_id(content("eos_token"))
    writer.add_unk_token_id(content("unk_token"))
    writer.add_pad_token_id(content("pad_token"))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    template = args.folder / "chat_template.json"
    if template.exists():
        writer.add_chat_template(json.loads(template.read_text())["chat_template"])

    prefix = "model.text_model."
    add(writer, "token_embd.weight", weights[prefix + "embed_tokens.weight"], kind)
    add(writer, "output_norm.weight", weights[prefix + "norm.weight"], kind)
    if "lm_head.weight" in weights and not config.get("tie_word_embeddings"):
        add(writer, "output.weight", weights["lm_head.weight"], kind)
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(text["num_hidden_layers"]):
        for name, part in parts.items():
            weight = weights[f"{prefix}layers.{layer}.{part}.weight"]
            if name in ["attn_q", "attn_k"]:
                weight = permuted(weight, heads if name == "attn_q" else kv_heads)
            add(writer, f"blk.{layer}.{name}.weight", weight, kind)
    finish(writer)


def write_mmproj(path, kind):
    size = lambda key, default: vision.get(key, default)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "idefics3")
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "image_size": size("image_size", 224), "patch_size": size("patch_size", 32),
        "embedding_length": size("hidden_size", 1152), "feed_forward_length": size("intermediate_size", 3072),
        "block_count": size("num_hidden_layers", 12), "projection_dim": text["hidden_size"],
        "attention.head_count": size("num_attention_heads", 16), "projector.scale_factor": config["scale_factor"],
        "preproc_image_size": 4 * size("image_size", 224),
    }  # fmt: skip
    if args.older:
        del numbers["preproc_image_size"]
    for key, value in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5 if args.older else 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)

    prefix = "model.vision_model."
    add(writer, "mm.model.fc.weight", weights["model.connector.modality_projection.proj.weight"], kind)
    whole = {"patch_embd": "embeddings.patch_embedding", "post_ln": "post_layernorm"}
    for name, part in whole.items():
        for end in ["weight", "bias"]:
            add(writer, f"v.{name}.{end}", weights[f"{prefix}{part}.{end}"], kind)
    add(writer, "v.position_embd.weight", weights[f"{prefix}embeddings.position_embedding.weight"], kind)
    up, down = ("ffn_down", "ffn_up") if args.older else ("ffn_up", "ffn_down")
    parts = {
        "ln1": "layer_norm1", "ln2": "layer_norm2", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_out": "self_attn.out_proj", up: "mlp.fc1", down: "mlp.fc2",
    }  # fmt: skip
    for layer in range(numbers["block_count"]):
        for name, part in parts.items():
            for end in ["weight", "bias"]:
                add(writer, f"v.blk.{layer}.{name}.{end}", weights[f"{prefix}encoder.layers.{layer}.{part}.{end}"], kind)
    finish(writer)


write_text(args.output / f"model-{args.type}.gguf", Type[args.type])
write_mmproj(args.output / "mmproj-model.gguf", Type.F16)
