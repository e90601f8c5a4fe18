"""Writes idefics-kernels/tests/fixtures/quantization.safetensors: known weights quantised by bitsandbytes (CPU) and quanto.

Usage: python quantization_fixtures.py OUTPUT_FOLDER
Needs torch, bitsandbytes, optimum-quanto and safetensors. The output is deterministic: the weights come from a fixed seed.

Names are CASE.PART. A four-bit case has `weight`, `codes`, `absmax`, `dequantized`, `quant_map` and `quant_state` (UTF-8
JSON). The case with double quantisation also has the quantised `absmax` in parts: `absmax8`, `nested_absmax`,
`nested_quant_map`, `offset`, and the dequantised `absmax_expanded`.
"""

import sys
from pathlib import Path

import bitsandbytes
import bitsandbytes.functional as bnb
import optimum.quanto as quanto
import torch
from quantization import expanded_absmax, four_bit_values, int8
from safetensors.torch import save_file

tensors = {}


def weights(d_out, d_in, seed):
    """Normally distributed values with some large ones and some zeros."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(d_out, d_in, generator=generator) * 0.02
    values *= torch.rand(d_out, 1, generator=generator) * 4 + 0.1
    values[torch.rand(d_out, d_in, generator=generator) < 0.02] *= 10
    values[torch.rand(d_out, d_in, generator=generator) < 0.05] = 0
    return values


def four_bit(case, weight, kind, nested=False, storage=torch.uint8):
    codes, state = bnb.quantize_4bit(
        weight, quant_type=kind, blocksize=64, compress_statistics=nested, quant_storage=storage
    )
    expanded = expanded_absmax(state)
    dequantized = four_bit_values(codes, state, weight.shape)
    if weight.shape[1] % 64 == 0:
        assert torch.equal(dequantized, bnb.dequantize_4bit(codes, state)), case
    packed = state.as_dict(packed=True)
    tensors[f"{case}.quant_state"] = packed[f"quant_state.bitsandbytes__{kind}"]
    tensors[f"{case}.quant_map"] = packed["quant_map"]
    if nested:
        tensors[f"{case}.absmax8"] = state.absmax
        tensors[f"{case}.nested_absmax"] = state.state2.absmax
        tensors[f"{case}.nested_quant_map"] = packed["nested_quant_map"]
        tensors[f"{case}.offset"] = state.offset.reshape(1)
        tensors[f"{case}.absmax"] = bnb.quantize_4bit(weight, quant_type=kind, blocksize=64)[1].absmax
        tensors[f"{case}.absmax_expanded"] = expanded
    else:
        tensors[f"{case}.weight"] = weight
        tensors[f"{case}.codes"] = codes.flatten()
        tensors[f"{case}.absmax"] = state.absmax
        tensors[f"{case}.dequantized"] = dequantized


for kind in ["nf4", "fp4"]:
    four_bit(f"{kind}", weights(6, 128, 1), kind)
    four_bit(f"{kind}_spanning", weights(7, 72, 2), kind)  # blocks span rows
    four_bit(f"{kind}_odd", weights(5, 33, 3), kind)  # an odd number of weights
zeros = weights(4, 64, 4)
zeros[1] = 0
four_bit("nf4_zero_block", zeros, "nf4")
# To get many scales from few weights, one large value per block is enough.
generator = torch.Generator().manual_seed(5)
spread = torch.zeros(300, 64)
spread[:, 7] = torch.rand(300, generator=generator) * 0.1
four_bit("nf4_nested", spread.to(torch.bfloat16).float(), "nf4", nested=True)
four_bit("nf4_bf16_storage", weights(8, 64, 6), "nf4", storage=torch.bfloat16)

weight = weights(9, 40, 7)
weight[3] = 0
quantized = int8(weight)
tensors["int8.weight"] = weight
tensors["int8.codes"] = quantized._data
tensors["int8.scales"] = quantized._scale.flatten()
tensors["int8.dequantized"] = quantized.dequantize()

codes, scb, _ = bnb.int8_vectorwise_quant(weights(5, 32, 8))
tensors["llm_int8.codes"] = codes
tensors["llm_int8.scb"] = scb
tensors["llm_int8.dequantized"] = bnb.int8_vectorwise_dequant(codes, scb)
tensors["dynamic_map"] = bnb.create_dynamic_map()

versions = {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__, "quanto": quanto.__version__}
path = Path(sys.argv[1]) / "quantization.safetensors"
save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata=versions)
print(path, path.stat().st_size, "bytes")
