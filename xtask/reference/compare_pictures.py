"""Compares our decoder with Pillow on image files.

    cargo build -p idefics-image --example decode
    python xtask/reference/compare_pictures.py [-v] [--decode BINARY] FORMAT FILE...

FORMAT is Pillow's name of the format (PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF, JPEG2000, PPM, ICO, CUR, TGA). Files of other
formats are skipped, and so are files that neither decoder can read. The reference is `load_image` of Transformers followed by
`convert_to_rgb` ("drop"), and `exif_transpose` followed by `convert_to_rgb` ("white").
"""

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

sys.modules["torchvision"] = None

import numpy as np
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb

warnings.simplefilter("ignore")


def reference(path, alpha):
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if alpha == "drop":
            upright = upright.convert("RGB")
        return np.array(convert_to_rgb(upright))


def ours(binary, path, alpha):
    done = subprocess.run([binary, path, "--alpha", alpha], capture_output=True)
    if done.returncode != 0:
        return done.stderr.decode(errors="replace").strip().splitlines()[-1]
    head, data = done.stdout.split(b"\n", 1)
    width, height = map(int, head.split())
    return np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-v", "--verbose", action="store_true", help="print a line for every file")
    parser.add_argument("--decode", default=str(Path(__file__).parents[2] / "target/debug/examples/decode"))
    parser.add_argument("format")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()

    compared, exact, refused, lenient, largest, mean = 0, 0, 0, 0, 0, 0.0
    for path in arguments.files:
        try:
            with Image.open(path) as image:
                if image.format != arguments.format and not (arguments.format == "JPEG" and image.format == "MPO"):
                    continue
        except Exception:
            pass
        expected = {}
        for alpha in ("white", "drop"):
            try:
                expected[alpha] = reference(path, alpha)
            except Exception as error:
                expected[alpha] = f"{type(error).__name__}: {error}"
        worst, average = 0, 0.0
        for alpha, right in expected.items():
            found = ours(arguments.decode, path, alpha)
            if isinstance(right, str) or isinstance(found, str):
                worst = None
                if isinstance(right, str) and not isinstance(found, str):
                    lenient += 1
                    print(f"{path}: read, where Pillow refuses ({alpha}): {right}")
                elif isinstance(found, str) and not isinstance(right, str):
                    refused += 1
                    print(f"{path}: REFUSED, where Pillow reads ({alpha}): {found}")
                elif arguments.verbose:
                    print(f"{path}: refused by both: {right} | {found}")
                break
            if right.shape != found.shape:
                worst = 999
                print(f"{path}: size {found.shape}, expected {right.shape}")
                continue
            difference = np.abs(right.astype(int) - found)
            worst, average = max(worst, int(difference.max())), max(average, float(difference.mean()))
        if worst is None:
            continue
        compared, exact, largest, mean = compared + 1, exact + (worst == 0), max(largest, worst), max(mean, average)
        if arguments.verbose or worst:
            print(f"{path}: largest difference {worst}, mean {average:.4f}")
    print(
        f"{arguments.format}: {compared} files compared, {exact} equal, largest difference {largest}, largest mean "
        f"{mean:.4f}; refused by us alone {refused}, by Pillow alone {lenient}"
    )


main()
