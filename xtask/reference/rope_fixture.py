"""Writes a fixture of idefics-text: cosines and sines of every kind of rotary scaling.

    python xtask/reference/rope_fixture.py

Each entry has a `text_config` and calls on a new module, in the order of a generation: the input positions, and the first
half of `cos` and `sin` (the second half is the same).
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import MistralConfig
from transformers.models.mistral.modeling_mistral import MistralRotaryEmbedding

OUT = Path(__file__).parents[2] / "idefics-text" / "tests" / "fixtures" / "rope.json"
SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}
FACTORS = {
    "short_factor": [1.0, 1.1, 1.3, 1.4, 1.9, 2.0, 2.2, 3.0],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 7.5, 11.0, 20.0, 32.5],
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 60}
# Positions of a prompt, then of single tokens beyond 30 and beyond 96. Some calls have several rows.
GROWING = [list(range(0, 29)), [29], [30], [31, 7], [95], [96, 12, 4], [97], [500]]
FIXED = [[0, 1, 2, 30, 95, 96, 1000, 30000]]

CONFIGS = {
    "default": ({"rope_theta": 700.0}, FIXED),
    "linear": ({"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 700.0}}, FIXED),
    "linear, old keys": ({"rope_scaling": {"type": "linear", "factor": 4}, "rope_theta": 700.0}, FIXED),
    "linear, both keys": ({"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 4.0}}, FIXED),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.5, "rope_theta": 10000.0}}, GROWING),
    "dynamic, old keys": ({"rope_scaling": {"type": "dynamic", "factor": 4}, "max_position_embeddings": 30}, GROWING),
    "yarn": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}},
        FIXED,
    ),
    "yarn, ratio": ({"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 24}}, FIXED),
    "yarn, all numbers": (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5000.0,
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 20,
                "beta_slow": 2,
                "mscale": 0.7,
                "mscale_all_dim": 1.3,
                "truncate": False,
            }
        },
        FIXED,
    ),
    "yarn, attention factor": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.25, "rope_theta": 200.0}},
        FIXED,
    ),
    "yarn, below 1": ({"rope_parameters": {"rope_type": "yarn", "factor": 0.5}}, FIXED),
    "llama3": ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3}}, FIXED),
    "llama3, original context beside": (
        {"rope_scaling": {"type": "llama3", **LLAMA3}, "original_max_position_embeddings": 48},
        FIXED,
    ),
    "longrope": (
        {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 30, **FACTORS}},
        GROWING,
    ),
    "longrope, factor": (
        {"rope_scaling": {"rope_type": "longrope", "factor": 8.0, "rope_theta": 500.0, **FACTORS}},
        GROWING,
    ),
    "longrope, attention factor": (
        {
            "rope_scaling": {"type": "longrope", "attention_factor": 1.2, **FACTORS},
            "original_max_position_embeddings": 30,
        },
        GROWING,
    ),
}


def main():
    entries = []
    for name, (section, calls) in CONFIGS.items():
        config = {**SHAPE, **section}
        rotary = MistralRotaryEmbedding(MistralConfig(**json.loads(json.dumps(config))))
        answers = []
        for positions in calls:
            cos, sin = rotary(torch.zeros(1), torch.tensor([positions]))
            half = cos.shape[-1] // 2
            flat = lambda table: [float(f"{value:.9g}") for value in table[0, :, :half].flatten().tolist()]
            answers.append({"positions": positions, "cos": flat(cos), "sin": flat(sin)})
        entries.append({"name": name, "text_config": config, "calls": answers})
    document = {"transformers": transformers.__version__, "script": "rope_fixture.py", "entries": entries}
    OUT.write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
