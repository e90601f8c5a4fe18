"""Quantises weights with bitsandbytes and quanto, and dequantises them."""

from __future__ import annotations

import shutil
from pathlib import Path

import bitsandbytes.functional as bnb
import optimum.quanto as quanto
import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import BitsAndBytesConfig, Idefics2ForConditionalGeneration

BLOCK = 64


def expanded_absmax(state: bnb.QuantState) -> torch.Tensor:
    """The scales of a four-bit weight, dequantised if they are quantised."""
    if state.nested:
        return bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    return state.absmax


def four_bit_values(codes: torch.Tensor, state: bnb.QuantState, shape: torch.Size) -> torch.Tensor:
    """Dequantises four-bit codes.

    Does not use `dequantize_4bit`. On processors with AVX-512, that function uses the wrong block if the row length is not a
    multiple of 64.
    """
    count = shape.numel()
    table = state.code[torch.stack([codes.view(torch.uint8) >> 4, codes.view(torch.uint8) & 15], -1).flatten().long()]
    scales = expanded_absmax(state).repeat_interleave(BLOCK)[:count]
    return (table[:count] * scales).reshape(shape)


def int8(weight: torch.Tensor) -> quanto.QTensor:
    """A weight, `[d_out, d_in]`, quantised as by `QuantoConfig(weights="int8")`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    quantized = quanto.QLinear.from_module(linear, weights=quanto.qint8)
    quantized.freeze()
    return quantized.weight


def rounded(weight: torch.Tensor, quantize: str, double_quant: bool) -> torch.Tensor:
    """A weight after quantising and dequantising."""
    if quantize == "int8":
        return int8(weight).dequantize()
    codes, state = bnb.quantize_4bit(weight, quant_type=quantize, blocksize=BLOCK, compress_statistics=double_quant)
    return four_bit_values(codes, state, weight.shape)


def round_weights(model: nn.Module, quantize: str, double_quant: bool) -> None:
    """Quantise and dequantise every layer that the reference quantises: linear layers outside the head."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[0] != "lm_head":
            with torch.no_grad():
                module.weight.copy_(rounded(module.weight.data, quantize, double_quant))


def look_up_in_float32(model: nn.Module) -> None:
    """Make four-bit layers compute in float32, whatever the dtype of the original weights and the processor."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.weight.quant_state.dtype = torch.float32
            module.support_avx512bf16_for_cpu = False


def write_quantized(source: Path, target: Path, quantize: str, double_quant: bool) -> None:
    """Write a copy of a checkpoint as stored by bitsandbytes."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json", "config.json"))
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quantize, bnb_4bit_use_double_quant=double_quant
    )
    model = Idefics2ForConditionalGeneration.from_pretrained(
        source, quantization_config=options, dtype=torch.float32, device_map="cpu"
    )
    generation_config = target / "generation_config.json"
    kept = generation_config.read_bytes() if generation_config.exists() else None
    model.save_pretrained(target)
    if kept is not None:
        generation_config.write_bytes(kept)
