"""Images for the cases: drawn from a seed, and small variants of free photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage
from PIL import Image
from transformers.image_utils import load_image

SOURCES = Path(skimage.__file__).parent / "data"
ORIENTATION = 0x0112  # the EXIF tag


def write_made(path: Path, size: tuple[int, int], seed: int) -> None:
    """An RGB PNG with two gradients, a few filled boxes and a patch of noise: both sharp and smooth edges."""
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


def photograph(name: str, width: int, height: int) -> Image.Image:
    """One of the photographs, resized and cropped to the given size."""
    with Image.open(SOURCES / f"{name}.png") as image:
        image = Image.fromarray(np.array(image.convert("RGB")))  # drops colour profiles
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def turned(image: Image.Image, orientation: int) -> dict[str, Any]:
    """Options of `save` that set the EXIF orientation."""
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    return {"exif": exif}


def faded(image: Image.Image) -> Image.Image:
    """The image with an alpha band from transparent to opaque."""
    ramp = np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))
    image = image.copy()
    image.putalpha(Image.fromarray(ramp))
    return image


def sixteen_bit(image: Image.Image) -> Image.Image:
    """A 16-bit grey image whose low bytes do not repeat the high bytes."""
    grey = np.array(image.convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 256 + (grey * 7 + 130) % 256)


def saved(make: Callable[[], Image.Image], **options: Any) -> Callable[[Path], None]:
    """A recipe that makes an image and saves it."""

    def write(path: Path) -> None:
        image = make()
        extra = turned(image, options["orientation"]) if "orientation" in options else {}
        image.save(path, **{key: value for key, value in options.items() if key != "orientation"}, **extra)

    return write


def palette(colours: int) -> Image.Image:
    """An image of 30 by 26 pixels with few colours."""
    return photograph("chelsea", 30, 26).quantize(colours, dither=Image.Dither.NONE)


def grey(levels: int) -> Image.Image:
    """A grey image of 30 by 26 pixels whose darkest level is 0."""
    return photograph("coffee", 30, 26).convert("L").point(lambda value: value * levels // 256 * (256 // levels))


RECIPES: dict[str, Callable[[Path], None]] = {
    "coffee.jpg": saved(lambda: photograph("coffee", 600, 400), quality=88, optimize=True),
    "cat.png": saved(lambda: photograph("chelsea", 110, 72), optimize=True),
    "astronaut.png": saved(lambda: photograph("astronaut", 50, 63), optimize=True),
    "cup.jpg": saved(lambda: photograph("coffee", 120, 80), quality=85),
    "cup-444.jpg": saved(lambda: photograph("coffee", 101, 67), quality=92, subsampling=0, progressive=True),
    "cup-turned.jpg": saved(lambda: photograph("coffee", 64, 97), quality=85, orientation=6),
    "grey.jpg": saved(lambda: photograph("astronaut", 90, 60).convert("L"), quality=90, orientation=3),
    "small.png": saved(lambda: photograph("chelsea", 47, 31), optimize=True),
    **{
        f"turned-{value}.png": saved(lambda: photograph("astronaut", 26, 33), orientation=value, optimize=True)
        for value in (2, 5, 6, 8)
    },
    "rgba.png": saved(lambda: faded(photograph("chelsea", 30, 26)), optimize=True),
    "grey-alpha.png": saved(lambda: faded(grey(256)), optimize=True),
    "colour-key.png": saved(lambda: palette(8).convert("RGB"), transparency=tuple(palette(8).getpalette()[:3])),
    "grey-key.png": saved(lambda: grey(8), transparency=0),
    "palette-key.png": saved(lambda: palette(8), transparency=3),
    "palette-alpha.png": saved(lambda: palette(16), transparency=bytes(range(0, 256, 17))),
    "palette.png": saved(lambda: palette(60), optimize=True),
    "grey.png": saved(lambda: photograph("coffee", 37, 35).convert("L"), optimize=True),
    "bilevel.png": saved(lambda: photograph("astronaut", 33, 40).convert("1")),
    "grey-16.png": saved(lambda: sixteen_bit(photograph("coffee", 40, 33))),
}


def open_upright(path: Path) -> Image.Image:
    """Open a file as the reference does: EXIF orientation applied, alpha dropped; 16-bit grey is clipped."""
    return load_image(open_raw(path))


def open_raw(path: Path) -> Image.Image:
    """Open a file with all its bands."""
    return Image.open(path)
