"""IDEFICS v1: tiny checkpoints, cases, and how the reference is run for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from cases import OBSERVED, OBSERVED_TOO, PROCESSORS, STRICT, Case, Row, runs
from checkpoints import VOCABULARY
from pictures import open_upright
from transformers import IdeficsConfig, IdeficsForVisionText2Text
from vocab import SPECIAL, write_json, write_tokenizer

Tensors = dict[str, torch.Tensor]

IMAGE_IDS = [[VOCABULARY.id("<fake_token_around_image>")], [VOCABULARY.id("<image>")]]
END_OF_UTTERANCE = VOCABULARY.id("<end_of_utterance>")
IGNORED = -100


@dataclass(frozen=True)
class Checkpoint1:
    """Properties of one IDEFICS v1 checkpoint folder."""

    about: str
    additional: int  # tokens after the vocabulary; 2: no <end_of_utterance>, 0: all special tokens are inside it
    text: dict[str, Any]
    vision: dict[str, Any]
    perceiver: dict[str, Any] | None = None  # none: no resampler
    top: dict[str, Any] = field(default_factory=dict)
    tokenizer_class: str = "LlamaTokenizer"
    legacy: bool = True
    generation: dict[str, Any] | None = None
    dtype: torch.dtype = torch.bfloat16
    shard_size: str = "1GB"
    weights: bool = True
    pickled: bool = False  # save pytorch_model.bin, as in old repositories

    @property
    def special(self) -> list[str]:
        """The added tokens."""
        return SPECIAL[:2] if self.additional == 2 else SPECIAL


def text(hidden: int, heads: int, layers: int, inter: int, interval: int, **more: Any) -> dict[str, Any]:
    """The keys of the decoder, which are at the top level of `config.json`."""
    shape = {"hidden_size": hidden, "num_attention_heads": heads, "num_hidden_layers": layers}
    return {**shape, "intermediate_size": inter, "cross_layer_interval": interval, **more}


def vision(image: int, patch: int, width: int, heads: int, layers: int, inter: int, **more: Any) -> dict[str, Any]:
    """A `vision_config` of the given shape."""
    shape = {"image_size": image, "patch_size": patch, "embed_dim": width, "num_attention_heads": heads}
    return {**shape, "num_hidden_layers": layers, "intermediate_size": inter, **more}


def perceiver(latents: int, depth: int, heads: int, head_dim: int, norms: bool) -> dict[str, Any]:
    """A `perceiver_config` of the given shape."""
    shape = {"resampler_n_latents": latents, "resampler_depth": depth, "resampler_n_heads": heads}
    return {**shape, "resampler_head_dim": head_dim, "qk_layer_norms_perceiver": norms}


CHECKPOINTS1: dict[str, Checkpoint1] = {
    "idefics1-float": Checkpoint1(
        "the shape of the public 9b folder: scalar gates, every second layer, norms of queries and keys, 2 added tokens",
        additional=2,
        text=text(24, 2, 4, 40, 2, qk_layer_norms=True, alpha_type="float"),
        vision=vision(28, 7, 20, 2, 2, 36),
        perceiver=perceiver(4, 2, 2, 12, True),
        generation={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        dtype=torch.float32,
    ),
    "idefics1-vector": Checkpoint1(
        "gates of one number an element, before every layer, no norms of queries and keys, 3 added tokens",
        additional=3,
        text=text(28, 2, 2, 44, 1, alpha_type="vector", rms_norm_eps=1e-5),
        vision=vision(30, 6, 18, 3, 1, 30),
        perceiver=perceiver(3, 1, 3, 8, False),
        generation={"bad_words_ids": IMAGE_IDS, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "idefics1-patches": Checkpoint1(
        "no resampler: tokens read all patches; three heads, norms of queries and keys, no added tokens",
        additional=0,
        text=text(30, 3, 2, 36, 1, qk_layer_norms=True, alpha_type="vector", rope_theta=500.0),
        vision=vision(24, 6, 16, 2, 2, 28),
        legacy=False,
    ),
    "idefics1-plain": Checkpoint1(
        "no resampler, no norms, scalar gates before every second layer, shards, tokenizer.json as it is",
        additional=3,
        text=text(24, 2, 2, 40, 2, alpha_type="float", rms_norm_eps=1e-2),
        vision=vision(26, 8, 16, 4, 1, 24, layer_norm_eps=1e-3),
        tokenizer_class="PreTrainedTokenizerFast",
        shard_size="30KB",
    ),
    "idefics1-tied": Checkpoint1(
        "tied embeddings, of the vocabulary and of the added tokens; weights pickled as in old repositories",
        additional=2,
        text=text(24, 4, 3, 32, 1, qk_layer_norms=True, alpha_type="float"),
        vision=vision(28, 14, 16, 2, 1, 24),
        perceiver=perceiver(2, 2, 2, 8, False),
        top={"tie_word_embeddings": True},
        pickled=True,
    ),
    "idefics1-small": Checkpoint1(
        "small enough to keep all gradients",
        additional=3,
        text=text(12, 2, 2, 18, 1, qk_layer_norms=True, alpha_type="vector", rms_norm_eps=1e-2),
        vision=vision(16, 8, 9, 3, 1, 12),
        perceiver=perceiver(2, 1, 2, 4, True),
        dtype=torch.float32,
    ),
    "idefics1-rope": Checkpoint1(
        "yarn over the original context of 24 tokens",
        additional=3,
        text=text(
            16,
            1,
            2,
            20,
            2,
            max_position_embeddings=96,
            rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
        ),
        vision=vision(16, 8, 9, 3, 1, 12),
        dtype=torch.float32,
    ),
    "idefics1-photo": Checkpoint1(
        "no weights: the processor for photographs",
        additional=3,
        text=text(4096, 32, 32, 11008, 4, qk_layer_norms=True),
        vision=vision(56, 14, 1280, 16, 32, 5120),
        perceiver=perceiver(64, 6, 16, 96, True),
        weights=False,
    ),
}


def config_json(spec: Checkpoint1) -> dict[str, Any]:
    """`config.json` with the keys of the public checkpoints."""
    pieces = len(VOCABULARY.ids)
    return {
        "additional_vocab_size": spec.additional,
        "alpha_initializer": "zeros",
        "alpha_type": "float",
        "architectures": ["IdeficsForVisionText2Text"],
        "bos_token_id": 1,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 2048,
        "model_type": "idefics",
        "pad_token_id": 0,
        "perceiver_config": {"model_type": "idefics", "use_resampler": False, **(spec.perceiver or {})},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": str(spec.dtype).removeprefix("torch."),
        "transformers_version": "4.32.0.dev0",
        "use_cache": True,
        "use_resampler": spec.perceiver is not None,
        "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-05, "model_type": "idefics", **spec.vision},
        "vocab_size": pieces if spec.additional else pieces + len(SPECIAL),
        **spec.text,
        **spec.top,
    }


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill every parameter so that nothing is zero, no gate is closed, and norm weights are around 1."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32))
            if "alpha" in name:
                value = 0.7 + 0.3 * noise
            elif ("norm" in name or ".ln." in name) and name.endswith("weight"):
                value = 1.0 + 0.2 * noise
            elif "class_embedding" in name or "position_embedding" in name or "latents" in name and "norm" not in name:
                value = 0.8 * noise
            elif parameter.ndim == 1:
                value = 0.2 * noise
            elif "embed_tokens" in name:
                value = (0.3 if model.config.tie_word_embeddings else 0.8) * noise
            else:
                value = 1.2 / math.sqrt(parameter[0].numel()) * noise
            parameter.copy_(value)
        if model.config.tie_word_embeddings:
            model.tie_weights()


def make_checkpoint1(name: str, seed: int, folder: Path) -> None:
    """Write the checkpoint folder `name` with weights from `seed`."""
    spec = CHECKPOINTS1[name]
    folder.mkdir(parents=True, exist_ok=True)
    raw = config_json(spec)
    if spec.weights:
        model = IdeficsForVisionText2Text(IdeficsConfig(**raw))
        randomise(model, crc32("/".join([str(seed), "weights", name]).encode()))
        model.to(spec.dtype).save_pretrained(folder, max_shard_size=spec.shard_size)
        if spec.pickled:
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_json(folder / "config.json", raw)
    if spec.generation is not None:
        write_json(folder / "generation_config.json", spec.generation)
    preprocessor = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_num_channels": 3,
        "image_processor_type": "IdeficsImageProcessor",
        "image_size": spec.vision["image_size"],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "IdeficsProcessor",
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    write_tokenizer(folder, VOCABULARY, spec.tokenizer_class, spec.legacy, spec.special, "IdeficsProcessor")


def process(case: Case, samples: list[Row], processor: Any, folder: Path) -> Tensors:
    """Run the processor on prompt lists; images are opened with the loader that it uses for URLs."""

    def item(part: Any) -> Any:
        return part if isinstance(part, str) else open_upright(folder / part["image"])

    prompts = [[item(part) for part in sample["prompt"]] for sample in samples]
    options = {"add_end_of_utterance_token": case.end_of_utterance, "add_eos_token": case.add_eos}
    inputs = dict(processor(text=prompts, padding="longest", return_tensors="pt", **options))
    inputs["image_attention_mask"] = inputs["image_attention_mask"].long()
    return inputs


def load1(checkpoint: Path) -> IdeficsForVisionText2Text:
    """The model of a checkpoint in float32 with eager attention."""
    model = IdeficsForVisionText2Text.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def real_images(pixel_values: torch.Tensor) -> torch.Tensor:
    """Whether each slot of `[batch, n_images, 3, height, width]` holds an image, flattened."""
    return pixel_values.flatten(0, 1).flatten(1).abs().sum(dim=1) > 0


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss over all logits, including those of added tokens. The reference's own loss fails with added tokens."""
    predictions, targets = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(predictions, targets, ignore_index=IGNORED)


def forward(model: IdeficsForVisionText2Text, inputs: Tensors, case: Case) -> Tensors:
    """One forward pass; returns every stage that the case stores."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)
    seen: Tensors = {}
    hook = model.model.vision_model.register_forward_hook(
        lambda _module, _inputs, output: seen.update({"vision": output.last_hidden_state})
    )
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
    hook.remove()
    tensors = {"logits": out.logits, "labels": labels, "loss": cross_entropy(out.logits, labels)}
    real = real_images(inputs["pixel_values"])
    if real.any():
        tensors["vision.last_hidden_state"] = seen["vision"][real]
        tensors["image_hidden_states"] = out.image_hidden_states.flatten(0, 1)[real]
    for name in ("hidden_states", "attentions")[: 1 + case.attentions]:
        tensors |= {f"{name}.{index}": layer for index, layer in enumerate(out[name])}
    return tensors


def gradients(model: IdeficsForVisionText2Text, inputs: Tensors) -> Tensors:
    """The gradient of the loss for every parameter."""
    model.requires_grad_(True)
    # The first real token of a left-padded row would be predicted from a padded slot, which is meaningless.
    mask = inputs["attention_mask"]
    labels = inputs["input_ids"].masked_fill((mask == 0) | (mask.cumsum(dim=1) == 1), IGNORED)
    loss = cross_entropy(model(**inputs).logits, labels)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"labels": labels, "loss": loss.detach(), **{f"grad.{name}": value for name, value in found.items()}}


def image(name: str) -> dict[str, str]:
    """An image of a prompt list."""
    return {"image": f"images/{name}"}


def prompt(*parts: Any) -> Row:
    """A prompt list of texts and image file names."""
    return {"prompt": [image(part) if part.endswith((".png", ".jpg")) else part for part in parts]}


def settings(tokens: int, **more: Any) -> dict[str, Any]:
    """Options of a run that never produces image tokens."""
    return {"max_new_tokens": tokens, "bad_words_ids": IMAGE_IDS, **more}


PICTURES = {"wide.png": (50, 31), "tall.png": (17, 42), "small.png": (9, 13)}
MIXED = [
    prompt("User:", "wide.png", "Is it?", "tall.png", "\nAnd:"),
    prompt("small.png", "{q} "),
    prompt(" It is"),
]
SHORT = [prompt("{q}", "wide.png", "tall.png", "a"), prompt("It", "small.png", "in ")]


def mixed(about: str, checkpoint: str, rows: list[Row], tokens: int = 10, **more: Any) -> Case:
    """A case with greedy search and beam search with two beams."""
    generate = {
        "greedy": settings(tokens, eos_token_id=[2]),
        "beams": settings(tokens, num_beams=2, eos_token_id=[2]),
    }
    return Case(about, checkpoint, rows, PICTURES, generate=generate, **more)


def quantized(quantize: str, double_quant: bool = False) -> Case:
    """A case with quantised linear layers."""
    return Case(
        f"linear layers as {quantize}{', scales quantised too' if double_quant else ''}; blocks span rows",
        "idefics1-small",
        [prompt("{q}", "tall.png"), prompt("small.png", "in")],
        {name: PICTURES[name] for name in ("tall.png", "small.png")},
        generate={"greedy": settings(8, eos_token_id=[2])},
        quantize=quantize,
        double_quant=double_quant,
    )


def packed(about: str, quantize: str) -> Case:
    """A case with a text model that is stored in four bits."""
    return replace(quantized(quantize), about=about, checkpoint="idefics1-plain", on_disk=True)


CASES1: dict[str, Case] = {
    "idefics1-float": mixed(
        "scalar gates before every second layer; rows with 2, 1 and 0 images", "idefics1-float", MIXED
    ),
    "idefics1-vector": mixed(
        "gates of one number an element before every layer, attention maps", "idefics1-vector", SHORT, attentions=True
    ),
    "idefics1-patches": mixed("no resampler: tokens read every patch", "idefics1-patches", SHORT, 8),
    "idefics1-plain": mixed(
        "no resampler, no norms; scalar gates, tokenizer.json as it is", "idefics1-plain", SHORT, 8
    ),
    "idefics1-tied": mixed("tied embeddings, weights in a pickle", "idefics1-tied", MIXED, 8),
    "idefics1-rope": mixed("rotary scaling yarn", "idefics1-rope", SHORT),
    "idefics1-conversation": Case(
        "the instructed checkpoints' conversation: two images, turns end in the text, the limit counts the prompt",
        "idefics1-vector",
        [
            prompt(
                "User: What is in this image?",
                "wide.png",
                "<end_of_utterance>",
                "\nAssistant: {q}<end_of_utterance>",
                "\nUser:",
                "tall.png",
                "And who is that?<end_of_utterance>",
                "\nAssistant:",
            )
        ],
        PICTURES,
        generate={
            "utterance": {"eos_token_id": [END_OF_UTTERANCE], "bad_words_ids": IMAGE_IDS, "max_length": 140},
            "stopped": settings(12, eos_token_id=[OBSERVED]),
        },
    ),
    "idefics1-turns": Case(
        "ends of turns between texts, ends of texts inside a prompt and after it, images that share a fake token",
        "idefics1-vector",
        [
            prompt("wide.png", "small.png", "What?", "\n</s>", "in", "tall.png", "a", "in"),
            prompt("in</s>it", "small.png", "  a  ", "\n"),
        ],
        PICTURES,
        generate={"greedy": settings(8, eos_token_id=[END_OF_UTTERANCE])},
        end_of_utterance=True,
        add_eos=True,
    ),
    "idefics1-text-only": Case(
        "no image in the whole batch: one slot of zeros, which nothing sees",
        "idefics1-float",
        [prompt("{q}"), prompt("It", "is")],
        generate={"greedy": settings(8), "beams": settings(8, num_beams=3, length_penalty=0.5)},
    ),
    "idefics1-generate": Case(
        "processors, beams, penalties and several answers",
        "idefics1-float",
        MIXED,
        PICTURES,
        generate=runs(
            {
                "processors": PROCESSORS["all"],
                "beams3": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
                "never": {"num_beams": 2, "early_stopping": "never", "eos_token_id": [OBSERVED, OBSERVED_TOO]},
                "answers": {"num_beams": 4, "num_return_sequences": 2, "repetition_penalty": 1.3},
            },
            max_new_tokens=9,
            eos_token_id=[OBSERVED],
        ),
        stages=False,
    ),
    "idefics1-gradients": Case(
        "the gradient of the loss for every tensor; rows with 2, 0 and 1 images",
        "idefics1-small",
        [
            prompt("small.png", "{q}", "wide.png", " One."),
            prompt("{q} No."),
            prompt("{q}", "tall.png", "Two."),
        ],
        PICTURES,
        gradients=True,
    ),
    "idefics1-int8": quantized("int8"),
    "idefics1-nf4": quantized("nf4", double_quant=True),
    "idefics1-fp4": quantized("fp4"),
    "idefics1-gptq-sym": packed("GPTQ, symmetric, groups of 8, with biases of zeros", "gptq-sym"),
    "idefics1-gptq-v2": packed("GPTQ in checkpoint format gptq_v2, one group per row", "gptq-v2"),
    "idefics1-photo": Case(
        "a photograph: a square whatever the shape, bicubic",
        "idefics1-photo",
        [prompt("User:", "small.png", "{q}")],
        photographs=("small.png",),
        model=False,
    ),
}
