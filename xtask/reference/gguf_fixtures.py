"""Writes idefics-kernels/tests/fixtures/gguf.safetensors: blocks of every GGUF type and the values that gguf-py reads in them;
and gguf_quantized.safetensors: values and the blocks that gguf-py quantises them to.

Usage: python gguf_fixtures.py OUTPUT_FOLDER
Needs: gguf 0.19, numpy, safetensors. Deterministic: bytes come from a fixed generator.

For each type T, gguf.safetensors has `T.blocks`, U8 [blocks, bytes of a block], and `T.values`, F32 [blocks, values of a
block]. Four blocks have random codes and scales of an ordinary size. The other blocks are extreme: with the greatest scale, a
subnormal scale, an infinite scale, a NaN scale, all bits set, and no bit set.
"""

import sys
from pathlib import Path

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

# Byte offsets of the f16 numbers in a block.
HALVES = {
    "F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip
TYPES = ["F32", "BF16", *HALVES]

random = numpy.random.default_rng(20)
tensors = {}
for name in TYPES:
    kind = Type[name]
    n_values, n_bytes = GGML_QUANT_SIZES[kind]
    rows = [random.integers(0, 256, n_bytes, dtype=numpy.uint8) for _ in range(8)]
    rows += [numpy.full(n_bytes, 0xFF, dtype=numpy.uint8), numpy.zeros(n_bytes, dtype=numpy.uint8)]
    ordinary = lambda: random.normal() * 0.01
    scales = [ordinary] * 4 + [lambda: 65504.0, lambda: -6e-8, lambda: numpy.inf, lambda: numpy.nan]
    for row, scale in zip(rows, scales):
        for at in HALVES.get(name, []):
            row[at : at + 2] = numpy.array([scale()], dtype=numpy.float16).view(numpy.uint8)
    blocks = numpy.stack(rows)
    with numpy.errstate(all="ignore"):
        values = dequantize(blocks, kind).astype(numpy.float32).reshape(len(rows), n_values)
    tensors[f"{name}.blocks"], tensors[f"{name}.values"] = blocks, values

save_file(tensors, Path(sys.argv[1]) / "gguf.safetensors")

# For the quantisers of gguf-py: `values`, F32 [blocks, 32], and for each type T its blocks `T`, U8 [blocks, bytes of a block].
# The values are normally distributed numbers of several sizes, zeros, one repeated value, two values that tie for the greatest
# magnitude, and numbers whose scale is subnormal in f16.
blocks = [random.normal(size=32) * 10.0**exponent for exponent in range(-6, 5) for _ in range(4)]
blocks += [numpy.zeros(32), numpy.full(32, 0.3), numpy.full(32, -0.3), numpy.tile([1.0, -1.0], 16), numpy.arange(32) - 16.0]
blocks += [numpy.where(numpy.arange(32) == 5, -1.0, 0.0), random.normal(size=32) * 3e-7, numpy.linspace(0.1, 0.2, 32)]
values = numpy.stack(blocks).astype(numpy.float32)
tensors = {"values": values}
for name in ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]:
    with numpy.errstate(all="ignore"):
        tensors[name] = quantize(values, Type[name]).view(numpy.uint8).reshape(len(values), -1)
save_file(tensors, Path(sys.argv[1]) / "gguf_quantized.safetensors")
