"""Training results: the gradients of the first step, and the losses of a short run with AdamW."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from cases import Train
from safetensors import safe_open
from transformers import Idefics2ForConditionalGeneration, PreTrainedModel, get_scheduler

Tensors = dict[str, torch.Tensor]
Parameters = dict[str, torch.nn.Parameter]

IGNORED = -100
ROUNDING = 2.0**-22  # relative change of the weights in the second run
STEADY = 1e-4  # maximum change of a loss in the second run
STEADY_NORM = 1e-3  # maximum change of a gradient norm in the second run
FALL = 0.1  # minimum decrease of the loss in a run


class Unsteady(Exception):
    """Raised if a run depends on rounding or learns nothing."""


@dataclasses.dataclass
class Run:
    """Results of one training run."""

    gradients: Tensors  # of the first step, before clipping
    losses: torch.Tensor
    grad_norms: torch.Tensor
    lrs: torch.Tensor


def training_labels(inputs: Tensors, recipe: str, image_token_id: int) -> torch.Tensor:
    """The input ids, with -100 for everything that does not count in the loss."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ignored = mask == 0
    # The first real token of a left-padded row would be predicted from a padded slot, which is meaningless: the result
    # at such a slot depends on the attention kernel. In a row without padding, no slot predicts it.
    ignored |= mask.cumsum(dim=1) == 1
    if recipe == "ignore_image_tokens":
        ignored |= ids == image_token_id
    return ids.masked_fill(ignored, IGNORED)


def load(checkpoint: Path) -> Idefics2ForConditionalGeneration:
    """The model of a checkpoint in float32 with eager attention."""
    return Idefics2ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def stored_names(checkpoint: Path) -> set[str]:
    """The tensor names of a checkpoint."""
    names: set[str] = set()
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names.update(file.keys())
    return names


def freeze(model: PreTrainedModel, prefixes: tuple[str, ...], stored: set[str]) -> Parameters:
    """Freeze the parameters whose names start with one of `prefixes`; return the others by name."""
    parameters = dict(model.named_parameters())  # lists tied tensors once
    assert parameters.keys() == stored, parameters.keys() ^ stored
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in parameters), prefix
    for name, parameter in parameters.items():
        parameter.requires_grad_(not name.startswith(prefixes))
    return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}


def schedule(optimizer: torch.optim.Optimizer, settings: Train) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule under its name in the reference, where plain `constant` has no warm-up."""
    warmed = settings.schedule == "constant" and settings.warmup_steps > 0
    name = "constant_with_warmup" if warmed else settings.schedule
    return get_scheduler(name, optimizer, settings.warmup_steps, settings.steps)


def steps(
    model: PreTrainedModel, parameters: Parameters, inputs: Tensors, settings: Train
) -> Iterator[tuple[Tensors, float, float, float]]:
    """Yields for each step the gradients before clipping, the loss, the gradient norm and the learning rate."""
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    scheduler = schedule(optimizer, settings)
    limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm
    for _ in range(settings.steps):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), limit)
        yield gradients, loss.item(), norm.item(), optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


def run(model: PreTrainedModel, parameters: Parameters, inputs: Tensors, settings: Train) -> Run:
    """Train `parameters` on one labelled batch."""
    gradients, losses, norms, lrs = zip(*steps(model, parameters, inputs, settings), strict=True)
    curves = [torch.tensor(values, dtype=torch.float32) for values in (losses, norms, lrs)]
    return Run(gradients[0], *curves)


def shake(parameters: Parameters) -> None:
    """Change every weight by about a rounding error."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in parameters.values():
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32))
            parameter.mul_(1.0 + ROUNDING * noise)


def train(load: Callable[[Path], PreTrainedModel], checkpoint: Path, inputs: Tensors, settings: Train) -> Tensors:
    """The tensors of a training case, except those of the processor. `load` opens a checkpoint of the family."""
    stored = stored_names(checkpoint)
    model = load(checkpoint)
    labels = training_labels(inputs, settings.labels, model.config.image_token_id)
    batch = {**inputs, "labels": labels}
    first = run(model, freeze(model, settings.frozen, stored), batch, settings)
    model = load(checkpoint)
    parameters = freeze(model, settings.frozen, stored)
    shake(parameters)
    shaken = run(model, parameters, batch, settings)
    for what, ours, theirs, limit in (
        ("the loss", shaken.losses, first.losses, STEADY),
        ("the norm of the gradients", shaken.grad_norms, first.grad_norms, STEADY_NORM),
    ):
        change = (ours - theirs).abs().max().item()
        if not change <= limit:
            raise Unsteady(f"rounding changes {what} by {change:.1e}")
    if not first.losses[-1] <= first.losses[0] - FALL:
        raise Unsteady(f"the loss goes from {first.losses[0]:.3f} to {first.losses[-1]:.3f}")
    return {
        "labels": labels,
        "loss": first.losses[0].clone(),
        **{f"grad.{name}": gradient for name, gradient in first.gradients.items()},
        "train.losses": first.losses,
        "train.grad_norms": first.grad_norms,
        "train.lrs": first.lrs,
    }
