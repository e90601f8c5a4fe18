"""Writes small animations of many kinds, and the frames that Pillow composes from them, on a white background.

    python xtask/reference/animation_fixtures.py

Versions: see requirements.txt. Output: idefics-image/tests/fixtures/animations/ and animations.safetensors, which
contains for every file `NAME/frames`, `[frames, height, width, 3]`, and `NAME/durations` in milliseconds.

APNG files with partly transparent frames are left out, because Pillow pastes such frames with a mask. The
specification asks for the operation "over" instead.
"""

import io
import sys
import warnings
from pathlib import Path

sys.modules["torchvision"] = None
warnings.simplefilter("ignore")

import numpy as np
import PIL
from PIL import Image, ImageSequence
from safetensors.numpy import save_file

FIXTURES = Path(__file__).parents[2] / "idefics-image" / "tests" / "fixtures"
FILES = FIXTURES / "animations"
W, H = 19, 13
DURATIONS = [120, 40, 70, 250, 30]


def scene(step: int, transparent: int = 255, square: bool = True) -> Image.Image:
    """Draw a moving square on a striped background; `transparent` is the alpha of the background."""
    rgba = np.zeros((H, W, 4), np.uint8)
    y, x = np.mgrid[0:H, 0:W]
    rgba[..., 0] = (x // 3) * 40
    rgba[..., 1] = (y // 2) * 30
    rgba[..., 2] = 90
    rgba[..., 3] = transparent
    if square:
        rgba[2 + step : 6 + step, 3 * step : 3 * step + 5] = [250 - 40 * step, 20 * step, 30, 255]
    return Image.fromarray(rgba, "RGBA")


def save(name: str, frames: list[Image.Image], **options: object) -> None:
    """Write an animation."""
    out = io.BytesIO()
    kind = {"gif": "GIF", "webp": "WEBP", "png": "PNG"}[name.rpartition(".")[2]]
    first, *rest = frames
    first.save(out, kind, save_all=True, append_images=rest, **options)
    (FILES / name).write_bytes(out.getvalue())


def frames_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The frames on a white background, and their durations."""
    frames, durations = [], []
    with Image.open(path) as image:
        skipped = int(bool(image.info.get("default_image")))  # Pillow counts a still picture before the animation
        for index, frame in enumerate(ImageSequence.Iterator(image)):
            if index < skipped:
                continue
            rgba = frame.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            frames.append(np.asarray(Image.alpha_composite(white, rgba).convert("RGB")))
            durations.append(int(frame.info.get("duration", 0)))
    return np.stack(frames), np.array(durations, np.int64)


def main() -> None:
    """Write all files."""
    FILES.mkdir(exist_ok=True)
    opaque = [scene(step) for step in range(5)]
    clear = [scene(step, 0) for step in range(5)]
    half = [scene(step, 60 * step) for step in range(5)]
    for disposal in (0, 1, 2, 3):
        save(f"opaque_{disposal}.gif", [frame.convert("RGB") for frame in opaque], duration=DURATIONS, disposal=disposal)
        save(f"clear_{disposal}.gif", clear, duration=DURATIONS, disposal=disposal, optimize=False)
    save("mixed.gif", clear, duration=DURATIONS, disposal=[1, 3, 2, 1, 2])
    save("background.gif", [frame.convert("P") for frame in opaque], duration=50, disposal=2, background=7)
    save("lossless.webp", opaque, duration=DURATIONS, lossless=True)
    save("clear.webp", clear, duration=DURATIONS, lossless=True)
    save("half.webp", half, duration=DURATIONS, lossless=True, exact=True)
    save("lossy.webp", half, duration=DURATIONS, quality=60)
    save("kmin.webp", half, duration=DURATIONS, lossless=True, kmin=1, kmax=2, minimize_size=True)
    for disposal in (0, 1, 2):
        for blend in (0, 1):
            save(f"clear_{disposal}{blend}.png", clear, duration=DURATIONS, disposal=disposal, blend=blend)
    save("palette.png", [frame.convert("RGB").quantize(8) for frame in opaque], duration=DURATIONS)
    save("default.png", [opaque[4], *clear[:4]], duration=DURATIONS[:4], default_image=True)
    tensors = {}
    for path in sorted(FILES.iterdir()):
        tensors[f"{path.name}/frames"], tensors[f"{path.name}/durations"] = frames_of(path)
    save_file(tensors, FIXTURES / "animations.safetensors", {"pillow": PIL.__version__, "script": "animation_fixtures.py"})


if __name__ == "__main__":
    main()
