"""Packs the text model of a checkpoint to four bits, as AutoAWQ, GPTQModel and compressed-tensors store it.

The libraries of these formats need GPUs, so this script packs weights by their rules. The reference runs on the dequantised
weights, `(code - zero) * scale`, which are exact in float32. Codes come from plain rounding. The searches for better codes
that these methods use are left out, because they do not change the layout.
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from vocab import write_json

Tensors = dict[str, torch.Tensor]
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # column of each of the 8 codes of a word, lowest bits first
NATURAL = (0, 1, 2, 3, 4, 5, 6, 7)
LEFT_OUT = ("vision_model", "connector", "perceiver_resampler", "embed_tokens", "lm_head")


@dataclass(frozen=True)
class Int4:
    """A way to store weights in four bits."""

    method: str  # awq, gptq or compressed-tensors
    group: int  # inputs per group; -1: a whole row
    symmetric: bool = False
    version: str = "gptq"  # checkpoint_format of GPTQ
    act_order: bool = False  # the inputs of a group are not adjacent
    zero_bias: bool = False  # layers without a bias get a bias of zeros


INT4 = {
    "awq": Int4("awq", 16),
    "gptq-sym": Int4("gptq", 8, symmetric=True, zero_bias=True),
    "gptq-v2": Int4("gptq", -1, version="gptq_v2"),
    "gptq-act-order": Int4("gptq", 32, act_order=True),
    "compressed": Int4("compressed-tensors", 4),
    "compressed-sym": Int4("compressed-tensors", -1, symmetric=True),
}


@dataclass(frozen=True)
class Codes:
    """A quantised weight: codes `[d_out, d_in]`, zero points and scales `[d_out, groups]`, the group of each input."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    index: np.ndarray

    def values(self) -> torch.Tensor:
        """The weight, `[d_out, d_in]`."""
        steps = self.codes.astype(np.float64) - self.zeros[:, self.index]
        return torch.from_numpy((steps * self.scales.astype(np.float64)[:, self.index]).astype(np.float32))


def quantized(name: str, weight: torch.Tensor, kind: Int4) -> Codes:
    """Quantises a weight, `[d_out, d_in]`, with scales in float16."""
    values = weight.to(torch.float64).numpy()
    d_out, d_in = values.shape
    group = d_in if kind.group == -1 else kind.group
    groups = -(-d_in // group)
    index = np.arange(d_in) // group
    if kind.act_order:
        index = index[np.random.default_rng(zlib.crc32(name.encode())).permutation(d_in)]
    zeros, scales = np.zeros((d_out, groups), np.int64), np.zeros((d_out, groups), np.float16)
    lowest = 1 if kind.method == "gptq" and kind.version == "gptq" else 0  # this version stores zero points minus one
    for at in range(groups):
        block = values[:, index == at]
        low, high = np.minimum(block.min(1), 0), np.maximum(block.max(1), 0)
        if kind.symmetric:
            scales[:, at], zeros[:, at] = np.abs(block).max(1) / 7.5, 8
        else:
            scales[:, at] = (high - low) / 15
            zeros[:, at] = np.clip(np.round(-low / scales[:, at]), lowest, 15 + lowest)
    steps = np.round(values / scales.astype(np.float64)[:, index]) + zeros[:, index]
    return Codes(np.clip(steps, 0, 15).astype(np.int64), zeros, scales, index)


def words(codes: np.ndarray, order: tuple[int, ...]) -> torch.Tensor:
    """Packs codes `[n, m]` into words `[n, m / 8]`: code `order[k]` of eight is in bits 4k to 4k + 3."""
    eights = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8))).reshape(codes.shape[0], -1, 8)[:, :, order]
    packed = (eights.astype(np.uint32) << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32)
    return torch.from_numpy(packed.view(np.int32).copy())


def packed(layer: str, weight: Codes, kind: Int4) -> Tensors:
    """The tensors of a layer, by their names in the file.

    Sources: AutoAWQ, `WQLinear_GEMM.from_linear`; GPTQModel, `PackableQuantLinear.pack`; compressed-tensors 0.20.1,
    `PackedQuantizationCompressor.compress`.
    """
    scales = torch.from_numpy(weight.scales)
    if kind.method == "awq":
        tensors = {
            "qweight": words(weight.codes.T, AWQ_COLUMNS),
            "qzeros": words(weight.zeros.T, AWQ_COLUMNS),
            "scales": scales.T,
        }
    elif kind.method == "gptq":
        stored = weight.zeros - (kind.version == "gptq")
        tensors = {
            "qweight": words(weight.codes, NATURAL).T,
            "qzeros": words(stored.T, NATURAL),
            "scales": scales.T,
            "g_idx": torch.from_numpy(weight.index.astype(np.int32)),
        }
    else:
        tensors = {
            "weight_packed": words(weight.codes, NATURAL),
            "weight_scale": scales,
            "weight_shape": torch.tensor(weight.codes.shape),
        }
        if not kind.symmetric:
            tensors["weight_zero_point"] = words(weight.zeros.T, NATURAL).T
    if kind.zero_bias:
        tensors["bias"] = torch.zeros(weight.codes.shape[0], dtype=torch.float16)
    return {f"{layer}.{part}": tensor.contiguous() for part, tensor in tensors.items()}


def config(kind: Int4) -> dict[str, Any]:
    """`quantization_config`, as the public checkpoints of each method have it."""
    if kind.method == "awq":
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": kind.group,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(LEFT_OUT),
        }
    if kind.method == "gptq":
        return {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": kind.group,
            "desc_act": kind.act_order,
            "sym": kind.symmetric,
            "lm_head": False,
            "true_sequential": True,
            "checkpoint_format": kind.version,
            "pack_dtype": "int32",
            "meta": {"quantizer": ["gptqmodel:4.0.0"], "damp_percent": 0.05},
        }
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": kind.symmetric,
        "strategy": "channel" if kind.group == -1 else "group",
        "group_size": None if kind.group == -1 else kind.group,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head", "re:.*vision_model.*", "re:.*connector.*"],
    }


def is_packed(name: str, module: nn.Module) -> bool:
    """Whether a module is packed. Only linear layers of the text model are."""
    return isinstance(module, nn.Linear) and not any(part in name for part in LEFT_OUT)


def round_int4(model: nn.Module, quantize: str) -> None:
    """Replace the weights of packed layers by the dequantised weights."""
    for name, module in model.named_modules():
        if is_packed(name, module):
            with torch.no_grad():
                module.weight.copy_(quantized(name, module.weight.data, INT4[quantize]).values())


def write_int4(model: nn.Module, source: Path, target: Path, quantize: str) -> None:
    """Write a copy of the checkpoint `source` with packed layers; `model` is its model in float32."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json", "config.json"))
    tensors: Tensors = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
    for name, module in model.named_modules():
        if is_packed(name, module):
            weight = tensors.pop(f"{name}.weight")
            tensors |= packed(name, quantized(name, weight, INT4[quantize]), INT4[quantize])
    save_file(dict(sorted(tensors.items())), target / "model.safetensors", {"format": "pt"})
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    write_json(target / "config.json", settings | {"quantization_config": config(INT4[quantize])})
