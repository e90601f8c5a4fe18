"""Add the results of the reference to a case that has only samples."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import PIL
import torch
import transformers
from make_cases import render
from pictures import open_upright
from quantization import look_up_in_float32
from safetensors.torch import save_file
from transformers import AutoProcessor, Idefics2ForConditionalGeneration
from vocab import write_json


def fill(folder: Path, batch: int, logits: bool) -> None:
    """Write `expected.safetensors`, and `texts` into `case.json`, in batches of `batch` rows."""
    document = json.loads((folder / "case.json").read_text())
    checkpoint = folder / document["checkpoint"]
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = Idefics2ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    look_up_in_float32(model)
    rendered = [render(sample, processor) for sample in document["samples"]]
    images = [[open_upright(folder / path) for path in paths] for _, paths in rendered]
    texts = [text for text, _ in rendered]
    whole = processor(text=texts, images=images, padding=True, return_tensors="pt")
    tensors = {f"processor.{name}": whole[name] for name in (whole if logits else ("input_ids", "attention_mask"))}
    if logits:
        tensors["logits"] = model(**whole).logits
    prompt, pad = whole["input_ids"].shape[1], model.generation_config.pad_token_id
    for run, settings in document["generate"].items():
        answers = []
        for start in range(0, len(texts), batch):
            rows = slice(start, start + batch)
            inputs = processor(text=texts[rows], images=images[rows], padding=True, return_tensors="pt")
            out = model.generate(**inputs, **settings, do_sample=False)
            answers += [row.tolist() for row in out[:, inputs["input_ids"].shape[1] :]]
        length = max(len(answer) for answer in answers)
        answers = [answer + [pad] * (length - len(answer)) for answer in answers]
        stop = max(index for answer in answers for index, token in enumerate(answer) if token != pad) + 1
        sequences = torch.cat([whole["input_ids"], torch.tensor(answers)[:, :stop]], dim=1)
        tensors[f"generate.{run}.sequences"] = sequences
        document.setdefault("texts", {})[run] = processor.batch_decode(sequences, skip_special_tokens=True)
    document["reference"] = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "pillow": PIL.__version__,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")
    write_json(folder / "case.json", document)
    print(f"{folder}: {len(texts)} rows, prompts of up to {prompt} tokens")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="case folder with case.json and its images")
    parser.add_argument("--batch", type=int, default=25, help="batch size")
    parser.add_argument("--logits", action="store_true", help="also store pixels and logits, as one batch")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with torch.no_grad():
        fill(arguments.folder, arguments.batch, arguments.logits)


if __name__ == "__main__":
    main()
