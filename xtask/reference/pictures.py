"""Pictures for the cases: made ones from a seed, and variants of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_made(path: Path, size: tuple[int, int], seed: int) -> None:
    """An RGB PNG with two gradients, a few filled boxes and a patch of noise: sharp and smooth edges alike."""
    width, height = size
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(0.0, 1.0, width), np.linspace(0.0, 1.0, height))
    corners = rng.uniform(0, 255, (3, 3))
    pixels = np.stack([c[0] * (1 - across) + c[1] * across + (c[2] - c[0]) * down / 2 for c in corners], axis=-1)
    for _ in range(4):
        left, right = np.sort(rng.integers(0, width + 1, 2))
        top, bottom = np.sort(rng.integers(0, height + 1, 2))
        pixels[top:bottom, left:right] = rng.uniform(0, 255, 3)
    noisy = pixels[: height // 2, : width // 3]
    noisy += rng.normal(0, 40, noisy.shape)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, optimize=True)
