"""Prints greedy continuations by llama.cpp and the certainty of each token, for comparison with this program.

Usage: python llama_cpp_tokens.py FILE.gguf PROMPTS.json [--new 50] [--cache f32|f16] [--repack]
Needs: xllamacpp (built wheels of llama.cpp).

PROMPTS.json is a list of texts, or of lists of token ids. The default settings are closest to `--activations int8` of this
program: keys and values in f32, no flash attention, weights as they are in the file. llama.cpp's own defaults are
`--cache f16 --repack`. Each line of the output has the ids of the new tokens, their log-probabilities, and for each the
distance of the log-probability of the second best token.
"""

import argparse
import json
from pathlib import Path

import xllamacpp

parser = argparse.ArgumentParser()
parser.add_argument("file")
parser.add_argument("prompts", type=Path)
parser.add_argument("--new", type=int, default=50)
parser.add_argument("--cache", choices=["f32", "f16"], default="f32")
parser.add_argument("--repack", action="store_true")
args = parser.parse_args()

params = xllamacpp.CommonParams()
params.model.path = args.file
params.n_ctx, params.n_parallel = 2048, 1
params.warmup, params.verbosity = False, -1
params.no_extra_bufts = not args.repack
if args.cache == "f32":
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)

for prompt in json.loads(args.prompts.read_text()):
    request = {"prompt": prompt, "n_predict": args.new, "temperature": 0.0, "ignore_eos": True, "logprobs": 2}
    answer = server.handle_completions(request | {"cache_prompt": False})
    choice = answer["choices"][0]
    tokens = choice["logprobs"]["content"]
    best = [sorted((other["logprob"] for other in token["top_logprobs"]), reverse=True) for token in tokens]
    line = {
        "prompt": prompt,
        "text": choice["text"],
        "tokens": [token["id"] for token in tokens],
        "logprobs": [token["logprob"] for token in tokens],
        "margins": [round(first - second, 4) for first, second in best],
    }
    print(json.dumps(line))
