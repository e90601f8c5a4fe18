"""Tiny random checkpoints in the layout of the public checkpoints."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from transformers import AutoProcessor, Idefics2Config, Idefics2ForConditionalGeneration
from vocab import BYTE_LEVEL_SIZE, CHAT_TEMPLATE, SPECIAL, mistral, write_byte_level, write_json, write_tokenizer

PIECES = 120  # multi-character pieces kept in the reduced vocabulary
VOCABULARY = mistral(PIECES)
FULL_VOCABULARY = mistral()


@dataclass(frozen=True)
class Checkpoint:
    """Properties of one checkpoint folder; all others are common to all folders."""

    about: str
    vision: dict[str, Any] = field(default_factory=dict)
    perceiver: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (28, 56)  # shortest and longest edge
    splitting: bool = False
    tokenizer_class: str = "LlamaTokenizer"
    legacy: bool = True
    template: str | None = "chat_template.json"
    generation: dict[str, Any] | None = None
    dtype: torch.dtype = torch.float32
    shard_size: str = "1GB"
    save_processor: bool = False  # save the processor files with `save_pretrained`
    hub_config: bool = False  # keep config.json as short as the public one
    weights: bool = True
    byte_level: bool = False  # use a byte-level BPE instead of the SentencePiece BPE
    base: bool = False  # no token or embedding for the end of a turn

    @property
    def latents(self) -> int:
        return self.perceiver["resampler_n_latents"]


def perceiver(latents: int, depth: int, heads: int, kv_heads: int, head_dim: int, **more: Any) -> dict[str, Any]:
    """A `perceiver_config` of the given shape."""
    shape = {"resampler_n_latents": latents, "resampler_depth": depth, "resampler_n_heads": heads}
    return {**shape, "resampler_head_dim": head_dim, "num_key_value_heads": kv_heads, **more}


def vision(image: int, patch: int, hidden: int, heads: int, layers: int, inter: int, **more: Any) -> dict[str, Any]:
    """A `vision_config` of the given shape."""
    shape = {"image_size": image, "patch_size": patch, "hidden_size": hidden, "num_attention_heads": heads}
    return {**shape, "num_hidden_layers": layers, "intermediate_size": inter, **more}


def text(hidden: int, heads: int, kv_heads: int, layers: int, inter: int, **more: Any) -> dict[str, Any]:
    """A Mistral `text_config` of the given shape."""
    shape = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    rest = {"num_hidden_layers": layers, "intermediate_size": inter, "max_position_embeddings": 2048}
    return {"model_type": "mistral", "vocab_size": VOCABULARY.size, **shape, **rest, **more}


BAD_WORDS = [[VOCABULARY.id("<fake_token_around_image>")], [VOCABULARY.id("<image>")]]

# Prompts of the cases are shorter than 30 tokens or longer than 40, so that answers cross the limit or start beyond it.
LONG = [1.0, 1.5, 2.5, 4.0, 7.5, 11.0, 20.0, 32.5]
SHORT = [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.9, 2.4]
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": (
        "linear, in the old spelling",
        {"rope_theta": 700.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
    ),
    "dynamic": (
        "dynamic; answers grow past the trained context of 40",
        {
            "max_position_embeddings": 40,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0},
        },
    ),
    "yarn": (
        "yarn, its factor on attention and its blend from the numbers of the section",
        {
            "max_position_embeddings": 256,
            "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 4.0},
        },
    ),
    "llama3": (
        "llama3, with every kind of wavelength",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "longrope": (
        "longrope; answers grow past the original context of 40, where the divisors change",
        {
            "max_position_embeddings": 160,
            "original_max_position_embeddings": 40,
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
    ),
}

CHECKPOINTS: dict[str, Checkpoint] = {
    "tiny-idefics2": Checkpoint(
        "the shape of the public folder: short config.json, old key names, generation defaults",
        vision=vision(112, 14, 24, 4, 2, 36),
        perceiver=perceiver(4, 2, 4, 2, 12),
        text=text(32, 4, 2, 2, 64, sliding_window=4096, pad_token_id=0),
        size=(28, 112),
        splitting=True,
        generation={
            "bad_words_ids": BAD_WORDS,
            "bos_token_id": 1,
            "eos_token_id": [2, VOCABULARY.id("<end_of_utterance>")],
            "pad_token_id": 0,
        },
        hub_config=True,
    ),
    "odd-heads": Checkpoint(
        "three heads, one kv head, n = 7 positions a side, perceiver eps from the text, tokenizer.json as it is",
        vision=vision(56, 8, 30, 3, 2, 40, layer_norm_eps=1e-5),
        perceiver=perceiver(5, 2, 3, 1, 10),
        text=text(36, 3, 1, 2, 52, rms_norm_eps=1e-2, rope_theta=500.0, sliding_window=None, pad_token_id=0),
        size=(20, 42),
        tokenizer_class="PreTrainedTokenizerFast",
        template="chat_template.jinja",
        hub_config=True,
    ),
    "wide-heads": Checkpoint(
        "head_dim is not hidden / heads (text and perceiver), own eps and rope_theta, legacy = false",
        vision=vision(60, 6, 20, 2, 2, 37),
        perceiver=perceiver(3, 1, 2, 2, 24, hidden_size=40, rms_norm_eps=1e-2),
        text=text(40, 4, 2, 2, 56, head_dim=16, rope_theta=700.0, rms_norm_eps=1e-5, pad_token_id=0),
        size=(18, 48),
        legacy=False,
    ),
    "sliding-sharded": Checkpoint(
        "sliding window of 7, shards with an index, processor files as the reference saves them",
        vision=vision(48, 4, 24, 2, 1, 32),
        perceiver=perceiver(2, 1, 3, 3, 8, hidden_size=24),
        text=text(24, 2, 2, 3, 40, sliding_window=7, pad_token_id=0),
        size=(16, 44),
        shard_size="60KB",
        save_processor=True,
        template="chat_template.jinja",
    ),
    "grid-980": Checkpoint(
        "the real grid (980 pixels, patch 14, 4900 positions), weights stored in bfloat16",
        vision=vision(980, 14, 12, 3, 1, 16),
        perceiver=perceiver(2, 1, 2, 1, 8, hidden_size=16),
        text=text(16, 2, 1, 1, 24, sliding_window=None, pad_token_id=0),
        size=(14, 980),
        dtype=torch.bfloat16,
        template=None,
    ),
    "grid-70": Checkpoint(
        "70 positions a side at patch 2, one latent an image, tied embeddings",
        vision=vision(140, 2, 8, 2, 1, 12),
        perceiver=perceiver(1, 1, 2, 1, 4, hidden_size=16),
        text=text(16, 2, 1, 1, 24, sliding_window=None, pad_token_id=0),
        top={"tie_word_embeddings": True},
        size=(2, 140),
        template=None,
    ),
    "small": Checkpoint(
        "small enough to keep all gradients: three heads, one kv head, two layers of each kind, a window of 16 keys",
        vision=vision(20, 4, 9, 3, 2, 12, layer_norm_eps=1e-5),
        perceiver=perceiver(3, 2, 3, 1, 4),
        text=text(12, 3, 1, 2, 18, rms_norm_eps=1e-2, rope_theta=500.0, sliding_window=16, pad_token_id=0),
        size=(8, 20),
        hub_config=True,
    ),
    "small-wide-heads": Checkpoint(
        "small, with the oddities of `wide-heads`",
        vision=vision(18, 3, 10, 2, 1, 13),
        perceiver=perceiver(2, 1, 2, 2, 8, hidden_size=10, rms_norm_eps=1e-2),
        text=text(10, 2, 1, 2, 15, head_dim=6, rope_theta=700.0, rms_norm_eps=1e-5, pad_token_id=0),
        size=(6, 18),
        legacy=False,
    ),
    **{
        f"rope-{name}": Checkpoint(
            f"rotary positions: {about}",
            vision=vision(20, 4, 9, 3, 1, 12),
            perceiver=perceiver(3, 1, 2, 1, 6),
            text=text(16, 2, 1, 2, 20, head_dim=16, sliding_window=None, pad_token_id=0, **section),
            size=(8, 20),
            template=None,
            hub_config=True,
        )
        for name, (about, section) in ROPES.items()
    },
    "base": Checkpoint(
        "the shape of the public base folder: no <end_of_utterance>, no row for it, no chat template",
        vision=vision(20, 4, 9, 3, 1, 12),
        perceiver=perceiver(3, 1, 2, 1, 6),
        text=text(16, 2, 1, 2, 20, sliding_window=4096, pad_token_id=0),
        size=(8, 20),
        template=None,
        generation={"bad_words_ids": BAD_WORDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        hub_config=True,
        base=True,
    ),
    "mistral-tokenizer": Checkpoint(
        "processor files only, with all 32003 entries of the real vocabulary",
        vision=vision(980, 14, 1152, 16, 27, 4304),
        perceiver=perceiver(64, 3, 16, 4, 96),
        text=text(4096, 32, 8, 32, 14336, pad_token_id=0),
        size=(24, 48),
        weights=False,
        hub_config=True,
    ),
    "byte-level": Checkpoint(
        "processor files only, with a byte-level BPE in the manner of GPT-2 that adds no start token",
        vision=vision(112, 14, 24, 4, 2, 36),
        perceiver=perceiver(2, 2, 4, 2, 12),
        text=text(32, 4, 2, 2, 64, pad_token_id=2),
        weights=False,
        byte_level=True,
        hub_config=True,
    ),
}


def derived_seed(seed: int, *names: str) -> int:
    """Derives a separate seed for each name."""
    return crc32("/".join([str(seed), *names]).encode())


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter so that nothing is zero, logits have a scale of 1 to 3 and norm weights are around 1."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32))
            if "norm" in name and name.endswith("weight"):
                value = 1.0 + 0.2 * noise
            elif parameter.ndim == 1:
                value = 0.2 * noise
            elif "position_embedding" in name or "latents" in name:
                value = 0.8 * noise
            elif "embed_tokens" in name:
                value = (0.3 if model.config.tie_word_embeddings else 0.8) * noise
            else:
                value = 1.2 / math.sqrt(parameter[0].numel()) * noise
            parameter.copy_(value)
        if model.config.tie_word_embeddings:
            model.tie_weights()


def make_checkpoint(name: str, seed: int, folder: Path) -> None:
    """Write the checkpoint folder `name` with weights from `seed`."""
    spec = CHECKPOINTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = VOCABULARY if spec.weights else FULL_VOCABULARY
    special = [token for token in SPECIAL if not (spec.base and token == "<end_of_utterance>")]
    raw = config_json(spec, vocabulary.size - len(SPECIAL) + len(special), vocabulary.id("<image>"))
    if spec.byte_level:
        raw = config_json(spec, BYTE_LEVEL_SIZE, BYTE_LEVEL_SIZE - len(SPECIAL) + SPECIAL.index("<image>"))
    if spec.weights:
        config = Idefics2Config(**json.loads(json.dumps(raw)))
        model = Idefics2ForConditionalGeneration(config)
        randomise(model, derived_seed(seed, "weights", name))
        model.to(spec.dtype).save_pretrained(folder, max_shard_size=spec.shard_size)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if spec.hub_config:
        write_json(folder / "config.json", raw)
    if spec.generation is not None:
        write_json(folder / "generation_config.json", spec.generation)
    write_processor(folder, spec)
    if spec.byte_level:
        write_byte_level(folder)
    else:
        write_tokenizer(folder, vocabulary, spec.tokenizer_class, spec.legacy, special)
    if spec.save_processor:
        processor = AutoProcessor.from_pretrained(folder)
        for path in (*folder.glob("*token*"), folder / "preprocessor_config.json"):
            path.unlink()
        processor.save_pretrained(folder)


def config_json(spec: Checkpoint, vocab_size: int, image_token_id: int) -> dict[str, Any]:
    """`config.json` with the keys of the public checkpoints."""
    return {
        "architectures": ["Idefics2ForConditionalGeneration"],
        "image_token_id": image_token_id,
        "model_type": "idefics2",
        "perceiver_config": {"model_type": "idefics2", **spec.perceiver},
        "text_config": {**spec.text, "vocab_size": vocab_size},
        "tie_word_embeddings": False,
        "torch_dtype": str(spec.dtype).removeprefix("torch."),
        "transformers_version": "4.41.0.dev0",
        "use_cache": True,
        "vision_config": {"model_type": "idefics2", **spec.vision},
        **spec.top,
    }


def write_processor(folder: Path, spec: Checkpoint) -> None:
    """Write the processor files and the chat template as in the public repositories."""
    preprocessor = {
        "do_convert_rgb": True,
        "do_image_splitting": spec.splitting,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Idefics2ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Idefics2Processor",
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": spec.size[1], "shortest_edge": spec.size[0]},
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    processor = {"image_seq_len": spec.latents, "processor_class": "Idefics2Processor"}
    write_json(folder / "processor_config.json", processor)
    if spec.template == "chat_template.json":
        write_json(folder / spec.template, {"chat_template": CHAT_TEMPLATE})
    elif spec.template is not None:
        (folder / spec.template).write_text(CHAT_TEMPLATE, encoding="utf-8")
