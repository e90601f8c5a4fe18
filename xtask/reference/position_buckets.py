"""Writes the row of the position table that the reference uses for each patch, for 1 to 70 patches along a side of 70.

    python position_buckets.py ../../idefics-vision/tests/fixtures/position_buckets.json
"""

import json
import sys

import torch
import transformers
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionConfig, Idefics2VisionEmbeddings

SIDE = 70


def main(path):
    # The position table holds its own row numbers and all patches are zero, so the output is the position.
    config = Idefics2VisionConfig(hidden_size=1, num_attention_heads=1, image_size=SIDE, patch_size=1)
    embeddings = Idefics2VisionEmbeddings(config)
    buckets = {}
    with torch.no_grad():
        embeddings.position_embedding.weight.copy_(torch.arange(SIDE * SIDE).view(-1, 1))
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        for patches in range(1, SIDE + 1):
            across = embeddings(torch.zeros(1, 3, 1, patches), torch.ones(1, 1, patches, dtype=torch.bool))
            down = embeddings(torch.zeros(1, 3, patches, 1), torch.ones(1, patches, 1, dtype=torch.bool))
            buckets[patches] = across.flatten().int().tolist()
            assert [SIDE * bucket for bucket in buckets[patches]] == down.flatten().int().tolist()

    with open(path, "w") as file:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
        rows = ",\n".join(f'    "{patches}": {json.dumps(row)}' for patches, row in buckets.items())
        file.write(f'{{\n  "reference": {json.dumps(versions)},\n  "buckets": {{\n{rows}\n  }}\n}}\n')


if __name__ == "__main__":
    main(sys.argv[1])
