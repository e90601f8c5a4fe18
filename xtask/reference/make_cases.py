"""Generate reference cases: folders with the results of the reference implementation."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
import idefics1
import idefics3
from cases import CASES as CASES2
from cases import OBSERVED, OBSERVED_TOO, QUESTIONS, Case
from checkpoints import CHECKPOINTS as CHECKPOINTS2
from checkpoints import derived_seed
from checkpoints import make_checkpoint as make_checkpoint2
from idefics1 import CASES1, CHECKPOINTS1, make_checkpoint1
from idefics3 import CASES3, CHECKPOINTS3, make_checkpoint3
from int4 import INT4, round_int4, write_int4
from PIL import Image
from pictures import RECIPES, open_raw, open_upright, write_made
from quantization import round_weights, write_quantized
from safetensors.torch import save_file
from training import Tensors, Unsteady, load, train
from transformers import (
    AutoProcessor,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    IdeficsImageProcessorPil,
    LogitsProcessor,
)
from vocab import write_json

CASES = {**CASES2, **CASES1, **CASES3}
CHECKPOINTS = {**CHECKPOINTS2, **CHECKPOINTS1, **CHECKPOINTS3}
NARROW = 1e-4  # minimum distance between the two best scores of a step


class Refused(Exception):
    """Raised for a seed whose case depends on rounding or does not test what it should."""


def make_checkpoint(name: str, seed: int, folder: Path) -> None:
    """Write the checkpoint folder `name` with weights from `seed`."""
    make = make_checkpoint1 if name in CHECKPOINTS1 else make_checkpoint3 if name in CHECKPOINTS3 else make_checkpoint2
    make(name, seed, folder)


def fill(value: Any, rng: np.random.Generator) -> Any:
    """Replace every `{q}` in a row by a question."""
    if isinstance(value, str):
        while "{q}" in value:
            value = value.replace("{q}", str(rng.choice(QUESTIONS)), 1)
        return value
    if isinstance(value, list):
        return [fill(item, rng) for item in value]
    if isinstance(value, dict):
        return {key: fill(item, rng) for key, item in value.items()}
    return value


def render(sample: dict[str, Any], processor: Any) -> tuple[str, list[str]]:
    """The rendered text of a sample, and its image paths relative to the case."""
    if "text" in sample:
        return sample["text"], sample["images"]
    images = [item["path"] for message in sample["messages"] for item in message["content"] if item["type"] == "image"]
    prompt = sample.get("add_generation_prompt", False)
    return processor.apply_chat_template(sample["messages"], add_generation_prompt=prompt), images


def process(case: Case, samples: list[dict[str, Any]], processor: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Run the processor on the raw samples; images are opened with the loader that it uses for files."""
    processor.image_processor.do_image_splitting = case.splitting
    rendered = [render(sample, processor) for sample in samples]
    images = [[open_upright(folder / path) for path in paths] for _, paths in rendered]
    options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
    inputs = dict(processor(text=[text for text, _ in rendered], images=images if any(images) else None, **options))
    if case.alpha == "white":
        raw = [[open_raw(folder / path) for path in paths] for _, paths in rendered]
        inputs |= dict(processor.image_processor(raw, return_tensors="pt"))
    return inputs


def forward(model: Idefics2ForConditionalGeneration, inputs: Tensors, case: Case) -> Tensors:
    """One forward pass; returns every stage that the case stores."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ignored = (mask == 0) | (ids == model.config.image_token_id)
    labels = ids.masked_fill(ignored, -100)
    seen: Tensors = {}
    hook = model.model.vision_model.register_forward_hook(
        lambda _module, _inputs, output: seen.update({"vision.last_hidden_state": output.last_hidden_state})
    )
    with torch.no_grad():
        out = model(**inputs, labels=labels, output_hidden_states=True, output_attentions=True)
    hook.remove()
    tensors = {**seen, "logits": out.logits, "labels": labels, "loss": out.loss}
    if out.image_hidden_states is not None:
        latents = model.config.perceiver_config.resampler_n_latents
        tensors["image_hidden_states"] = out.image_hidden_states.view(-1, latents, out.image_hidden_states.shape[-1])
    for name in ("hidden_states", "attentions")[: 1 + case.attentions]:
        tensors |= {f"{name}.{index}": layer for index, layer in enumerate(out[name])}
    return tensors


def observed_eos(sequences: torch.Tensor, prompt: int) -> list[int]:
    """Ids that a row generates in the middle of its answer. The first ids let another row run longest before it stops."""
    rows = [row.tolist() for row in sequences[:, prompt:]]
    length = len(rows[0])

    def stops(token: int) -> list[int]:
        return [row.index(token) if token in row else length for row in rows]

    middle = {token for row in rows for token in row if 2 <= min(stops(token)) <= length - 3}
    if len(middle) < 2:
        raise Refused("no row generates new ids in the middle; use another seed")
    return sorted(sorted(middle), key=lambda token: min(stops(token)) - max(stops(token)))


class Shaken(LogitsProcessor):
    """Adds noise that is larger than the differences between correct implementations."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(1)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Add noise to the scores."""
        return scores + NARROW / 10 * torch.randn(scores.shape, generator=self.random)


def greedy(model: Idefics2ForConditionalGeneration, inputs: Tensors, settings: dict[str, Any]) -> torch.Tensor:
    """Greedy sequences, including the prompt. Raises `Refused` if a choice depends on rounding."""
    out = model.generate(**inputs, **settings, do_sample=False, return_dict_in_generate=True, output_scores=True)
    best = torch.stack(out.scores).topk(2, dim=-1).values
    if (best[..., 0] - best[..., 1]).min() < NARROW:
        raise Refused("two tokens are almost equally likely; use another seed")
    return out.sequences


def beams(model: Idefics2ForConditionalGeneration, inputs: Tensors, settings: dict[str, Any]) -> Tensors:
    """Answers of a beam search and their scores. Raises `Refused` if noise on the scores changes them."""
    options = {**settings, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    out = model.generate(**inputs, **options)
    shaken = model.generate(**inputs, **options, logits_processor=[Shaken()])
    if not torch.equal(out.sequences, shaken.sequences):
        raise Refused("two answers are almost equally likely; use another seed")
    return {"sequences": out.sequences, "sequences_scores": out.sequences_scores}


def filtered(model: Idefics2ForConditionalGeneration, inputs: Tensors, settings: dict[str, Any]) -> Tensors:
    """The filtered scores of the first token, before sampling."""
    out = model.generate(**inputs, **settings, return_dict_in_generate=True, output_scores=True)
    return {"filtered_scores": out.scores[0]}


def placed(value: Any, observed: dict[int, int]) -> Any:
    """A setting with its placeholders replaced by ids."""
    if isinstance(value, list):
        return [placed(item, observed) for item in value]
    return observed.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def generate(
    model: Idefics2ForConditionalGeneration, inputs: Tensors, settings: dict[str, Any]
) -> tuple[Tensors, dict[str, Any]]:
    """The results of a run, and its settings with all placeholders replaced."""
    if "-1" in str(settings) or "-2" in str(settings):
        others = [token for token in settings.get("eos_token_id", []) if token >= 0]
        free = {"max_new_tokens": settings.get("max_new_tokens", 12), "bad_words_ids": settings["bad_words_ids"]}
        sequences = greedy(model, inputs, {**free, "eos_token_id": others})
        first, second = observed_eos(sequences, inputs["input_ids"].shape[1])[:2]
        settings = {key: placed(value, {OBSERVED: first, OBSERVED_TOO: second}) for key, value in settings.items()}
    with torch.no_grad():
        if settings.get("do_sample"):
            return filtered(model, inputs, settings), settings
        if settings.get("num_beams", 1) > 1:
            return beams(model, inputs, settings), settings
        return {"sequences": greedy(model, inputs, settings)}, settings


def loaded(case: Case) -> dict[str, Any]:
    """The `load` section of `case.json`: how to load the weights."""
    if case.on_disk:
        return {"quantize": None}
    return {"quantize": case.quantize} | ({"double_quant": True} if case.double_quant else {})


@dataclasses.dataclass(frozen=True)
class Family:
    """How the reference of a family is run."""

    open_processor: Callable[[Path], Any]
    images: type
    process: Callable[..., Tensors]
    load: Callable[[Path], Any]
    forward: Callable[..., Tensors]


def family_of(case: Case) -> Family:
    """The family of the case's checkpoint."""
    auto = AutoProcessor.from_pretrained
    if case.checkpoint in CHECKPOINTS1:
        return Family(auto, IdeficsImageProcessorPil, idefics1.process, idefics1.load1, idefics1.forward)
    if case.checkpoint in CHECKPOINTS3:
        own = idefics3
        return Family(own.open_processor, Idefics3ImageProcessorPil, own.process, own.load3, own.forward)
    return Family(auto, Idefics2ImageProcessorPil, process, load, forward)


def make_case(name: str, seed: int, folder: Path, checkpoint: Path, relative: str, fresh: bool) -> None:
    """Write the case folder `name` from `seed`, for the checkpoint at `checkpoint`."""
    case = CASES[name]
    shutil.rmtree(folder / "images", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(derived_seed(seed, "case", name))
    if case.pictures or case.photographs:
        (folder / "images").mkdir()
    for file in case.photographs:
        RECIPES[file](folder / "images" / file)
    for index, (file, (width, height)) in enumerate(case.pictures.items()):
        if fresh and not case.exact_sizes:
            width, height = (max(2, int(side * rng.uniform(0.6, 1.5))) for side in (width, height))
        write_made(folder / "images" / file, (width, height), derived_seed(seed, name, file, str(index)))
    samples = fill(case.rows, rng)
    family = family_of(case)
    processor = family.open_processor(checkpoint)
    assert type(processor.image_processor) is family.images, "the Pillow image processor is the reference"
    inputs = family.process(case, samples, processor, folder)
    tensors = {f"processor.{key}": value for key, value in inputs.items() if case.pixels or "pixel" not in key}
    generates, texts = {}, {}
    if case.train is not None:
        try:
            tensors |= train(family.load, checkpoint, idefics3.model_inputs(inputs), case.train)
        except Unsteady as reason:
            raise Refused(f"{reason}: choose another seed") from reason
    elif case.gradients:
        tensors |= idefics1.gradients(idefics1.load1(checkpoint), inputs)
    elif case.model:
        model = family.load(checkpoint)
        if case.quantize in INT4:
            write_int4(model, checkpoint, folder / relative, case.quantize)
            round_int4(model, case.quantize)
        elif case.quantize is not None:
            round_weights(model, case.quantize, case.double_quant)
        if case.stages:
            tensors |= family.forward(model, inputs, case)
        else:
            tensors = {key: value for key, value in tensors.items() if "pixel" not in key}
        for run, settings in case.generate.items():
            computed, generates[run] = generate(model, idefics3.model_inputs(inputs), settings)
            tensors |= {f"generate.{run}.{name}": value for name, value in computed.items()}
            if case.stages:
                texts[run] = processor.batch_decode(computed["sequences"], skip_special_tokens=True)
    save_file({key: value.contiguous() for key, value in sorted(tensors.items())}, folder / "expected.safetensors")
    document = {
        "format": 1,
        "family": json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["model_type"],
        "about": case.about,
        "seed": seed,
        "checkpoint": relative,
        "reference": {
            "transformers": transformers.__version__,
            "torch": torch.__version__.partition("+")[0],
            "pillow": PIL.__version__,
        },
        "samples": samples,
        "processor": {"do_image_splitting": case.splitting, "add_end_of_utterance_token": case.end_of_utterance},
        "generate": generates,
        "load": loaded(case),
        "texts": texts,
        "tolerance": case.tolerance,
    }
    if case.add_eos:
        document["processor"]["add_eos_token"] = True
    if case.train is not None:
        document["train"] = dataclasses.asdict(case.train)
    if case.alpha is not None:
        document["processor"]["alpha"] = case.alpha
    if case.note is not None:
        document["note"] = case.note
    write_json(folder / "case.json", document)


def main() -> int:
    """Run the command line. Returns 1 if a case was rejected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the case folders to")
    parser.add_argument("--case", action="append", choices=CASES, help="generate only this case (repeatable)")
    parser.add_argument("--seed", type=int, help="generate new cases from this seed, each with its own checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = arguments.case or list(CASES)
    fresh = arguments.seed is not None
    seed = arguments.seed if fresh else 0
    if not fresh:
        for checkpoint in CHECKPOINTS if not arguments.case else {CASES[name].checkpoint for name in names}:
            make_checkpoint(checkpoint, seed, arguments.out.parent / "checkpoints" / checkpoint)
        (arguments.out.parent / "images").mkdir(exist_ok=True)
        RECIPES["coffee.jpg"](arguments.out.parent / "images" / "coffee.jpg")
    refused = 0
    for name in names:
        folder = arguments.out / name
        checkpoint = CASES[name].checkpoint
        relative = "checkpoint" if fresh else f"../../checkpoints/{checkpoint}"
        if fresh:
            make_checkpoint(checkpoint, seed, folder / "checkpoint")
        plain = Path(os.path.normpath(folder / relative))  # the case need not exist yet
        if CASES[name].quantize in INT4:
            relative += f"-{CASES[name].quantize}"
        elif CASES[name].on_disk:
            relative += "-quantized"
            write_quantized(plain, plain.with_name(plain.name + "-quantized"), CASES[name].quantize, CASES[name].double_quant)
        try:
            make_case(name, seed, folder, plain, relative, fresh)
        except Refused as reason:
            shutil.rmtree(folder)
            refused = 1
            print(f"{name}: refused, {reason}", file=sys.stderr)
            continue
        print(f"{name}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1024:.0f} KiB")
    return refused


if __name__ == "__main__":
    sys.exit(main())
