"""Writes the image fixtures of idefics-image and idefics-processor: results of Pillow and Transformers for small images.

    python xtask/reference/processor_fixtures.py

Versions: see requirements.txt. The images are computed by a formula (picture() below and in tests/image.rs), so that only
files and results are stored. Output: idefics-processor/tests/fixtures/image* and idefics-image/tests/fixtures.
"""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import transformers
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from transformers.image_transforms import convert_to_rgb
from transformers.models.idefics2.image_processing_pil_idefics2 import (
    Idefics2ImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.image_utils import SizeDict

OUT = Path(__file__).parents[2] / "idefics-processor" / "tests" / "fixtures"
PICTURES = Path(__file__).parents[2] / "idefics-image" / "tests" / "fixtures"
FILES = PICTURES / "images"
METADATA = {"transformers": transformers.__version__, "pillow": PIL.__version__, "script": "processor_fixtures.py"}
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def picture(width, height, seed=0):
    """[height, width, 3] u8: ramps with hard edges, so that filters overshoot. The tests use the same formula."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3].astype(np.uint32)
    ramp = x * (7 + seed) + y * (13 + 2 * seed) + c * 29
    edges = ((x // 5 + y // 3 + c) % 3) * 97
    noise = ((x * 2654435761 + y * 40503 + c * 97 + seed * 7919) >> 7) % 61
    return ((ramp + edges + noise) % 256).astype(np.uint8)


def resize_fixture():
    sizes = [
        ((1, 1), (7, 5)), ((7, 5), (1, 1)), ((1, 9), (4, 4)), ((9, 1), (4, 4)), ((1, 40), (3, 40)), ((40, 1), (40, 3)),
        ((40, 30), (20, 15)), ((40, 30), (39, 29)), ((40, 30), (41, 31)), ((40, 30), (40, 11)), ((40, 30), (13, 30)),
        ((16, 16), (33, 47)), ((33, 47), (16, 16)), ((200, 3), (17, 3)), ((3, 200), (3, 17)), ((200, 3), (11, 29)),
        ((3, 200), (29, 11)), ((64, 48), (2, 2)), ((2, 2), (24, 24)), ((5, 5), (5, 40)), ((5, 5), (40, 5)),
        ((101, 67), (31, 19)), ((67, 101), (19, 31)), ((128, 128), (9, 120)), ((128, 128), (100, 9)), ((31, 17), (30, 18)),
        ((250, 2), (1, 2)), ((2, 250), (2, 1)), ((255, 255), (3, 3)), ((10, 10), (10, 10)), ((300, 200), (21, 14)),
    ]
    tensors = {}
    for index, ((w, h), (ow, oh)) in enumerate(sizes):
        image = Image.fromarray(picture(w, h, index))
        for name, number in FILTERS.items():
            tensors[f"{name}/{index}/{w}x{h}"] = np.array(image.resize((ow, oh), resample=number))
    save_file(tensors, PICTURES / "resize.safetensors", METADATA)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(name, width, height, depth, color, rows, *chunks):
    """A PNG with exactly the given samples. Rows are packed bytes."""
    raw = b"".join(b"\0" + bytes(row) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = b"".join(chunk(kind, data) for kind, data in chunks)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (FILES / name).write_bytes(data)


def packed(values, depth):
    """Rows of samples of 1, 2 or 4 bits."""
    bits = np.unpackbits(values[..., None].astype(np.uint8), axis=-1)[..., 8 - depth :]
    return np.packbits(bits.reshape(values.shape[0], -1), axis=1)


def decode_fixture():
    FILES.mkdir(parents=True, exist_ok=True)
    for old in FILES.iterdir():
        old.unlink()
    w, h = 16, 12
    rgb = picture(w, h, 1)
    grey = rgb[..., 0]
    alpha = picture(w, h, 2)[..., 1].copy()
    alpha[0, :4] = [0, 1, 254, 255]
    palette = picture(256, 1, 3).tobytes()
    index = (np.arange(w * h).reshape(h, w) * 7) % 256
    wide = lambda eight: (eight.astype(np.uint16) << 8 | (eight[::-1].astype(np.uint16) ^ 0x5A)).astype(">u2")
    expected = {}

    png("rgb.png", w, h, 8, 2, rgb)
    png("rgba.png", w, h, 8, 6, np.dstack([rgb, alpha]))
    png("grey.png", w, h, 8, 0, grey)
    png("grey_alpha.png", w, h, 8, 4, np.dstack([grey, alpha]))
    for depth in (1, 2, 4):
        png(f"grey{depth}.png", w, h, depth, 0, packed(grey >> (8 - depth), depth))
        used = 3 * 2**depth
        png(f"palette{depth}.png", w, h, depth, 3, packed(grey >> (8 - depth), depth), (b"PLTE", palette[:used]))
    png("palette.png", w, h, 8, 3, index.astype(np.uint8), (b"PLTE", palette))
    some = bytes([0, 40, 128, 200, 255] * 20)
    png("palette_trns.png", w, h, 8, 3, index.astype(np.uint8), (b"PLTE", palette), (b"tRNS", some))
    png("rgb_trns.png", w, h, 8, 2, rgb, (b"tRNS", struct.pack(">HHH", *map(int, rgb[2, 3]))))
    png("grey_trns.png", w, h, 8, 0, grey, (b"tRNS", struct.pack(">H", int(grey[2, 3]))))
    # The loader treats a single transparent entry as a transparent colour, which entry 9 repeats. It ignores two.
    twice = palette[:27] + palette[15:18] + palette[30:]
    named = (index % 16).astype(np.uint8)
    png("palette_key.png", w, h, 8, 3, named, (b"PLTE", twice), (b"tRNS", b"\xff" * 5 + b"\0"))
    png("palette_two_keys.png", w, h, 8, 3, named, (b"PLTE", twice), (b"tRNS", b"\xff" * 5 + b"\0\xff\0"))
    png("grey16.png", w, h, 16, 0, [row.tobytes() for row in wide(grey)])
    png("rgb16.png", w, h, 16, 2, [row.tobytes() for row in wide(rgb)])
    png("rgba16.png", w, h, 16, 6, [row.tobytes() for row in wide(np.dstack([rgb, alpha]))])

    image = Image.fromarray(rgb)
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    image.save(FILES / "rgb.bmp")
    image.quantize(16).save(FILES / "palette.bmp")
    image.quantize(64).save(FILES / "plain.gif")
    frames = [image.quantize(32), image.rotate(180).quantize(32)]
    frames[0].save(FILES / "animated.gif", save_all=True, append_images=frames[1:], duration=100)
    transparent = image.quantize(32)
    transparent.save(FILES / "transparent.gif", transparency=transparent.getpixel((3, 2)))
    # A GIF canvas that is larger than its only frame.
    for name in ("plain", "transparent"):
        data = (FILES / f"{name}.gif").read_bytes()
        (FILES / f"{name}_bare.gif").write_bytes(data[:6] + struct.pack("<HH", w + 4, h + 3) + data[10:])
    image.save(FILES / "lossless.webp", lossless=True)
    rgba.save(FILES / "lossless_alpha.webp", lossless=True, exact=True)
    rgba.save(FILES / "animated_alpha.webp", save_all=True, append_images=[rgba.rotate(180)], lossless=True, exact=True)
    smooth = Image.fromarray(picture(4, 3, 4)).resize((40, 30), 3)
    smooth.save(FILES / "lossy.webp", quality=90)
    for orientation in [*range(1, 9), 9, 65535]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(FILES / f"exif{orientation}.png", exif=exif)
        if orientation in (3, 6):
            smooth.save(FILES / f"exif{orientation}.jpg", exif=exif, quality=95, subsampling=0)
            image.save(FILES / f"exif{orientation}.webp", exif=exif, lossless=True)
    image.save(FILES / "bad_exif.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    smooth.save(FILES / "bad_exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff", quality=95)
    for name, sampling in {"444": 0, "422": 1, "420": 2}.items():
        smooth.save(FILES / f"{name}.jpg", quality=95, subsampling=sampling)
        smooth.crop((0, 0, 37, 27)).save(FILES / f"{name}_odd.jpg", quality=95, subsampling=sampling)
    smooth.save(FILES / "progressive.jpg", quality=95, progressive=True)
    smooth.convert("L").save(FILES / "grey.jpg", quality=95)
    smooth.convert("CMYK").save(FILES / "cmyk.jpg", quality=95)

    for path in sorted(FILES.iterdir()):
        with Image.open(path) as opened:
            try:
                upright = ImageOps.exif_transpose(opened)
            except Exception:  # ignore a damaged block
                upright = opened
            white, drop = (np.array(convert_to_rgb(image)) for image in (upright, upright.convert("RGB")))
        expected[f"{path.name}/white"] = np.ascontiguousarray(white)
        expected[f"{path.name}/drop"] = np.ascontiguousarray(drop)
    save_file(expected, PICTURES / "decode.safetensors", METADATA)


def size_fixture():
    sides = [1, 2, 3, 4, 27, 100, 377, 378, 379, 480, 640, 979, 980, 981, 1000, 1080, 1333, 1920, 2000, 3000, 4000, 7001]
    table = []
    for height in sides:
        for width in sides:
            image = np.empty((3, height, width), dtype=np.uint8)
            new_height, new_width = get_resize_output_image_size(image, SizeDict(shortest_edge=378, longest_edge=980))
            table.append([width, height, new_width, new_height])
    (OUT / "image_sizes.json").write_text(json.dumps(table, separators=(",", ":")) + "\n")


def processor_fixture():
    tensors = {}
    batches = {
        "plain": [[(70, 40), (12, 33)], [], [(9, 9)], [(50, 61), (3, 5), (24, 20)]],
        "split": [[(70, 40)], [(9, 9), (12, 33)]],
        # An image one pixel wide has empty quarters; one that is one pixel high causes a division by zero.
        "split_narrow": [[(1, 40), (1, 2)], [(1, 9)]],
    }
    variants = {
        "plain": {},
        "split": {"do_image_splitting": True},
        "split_narrow": {"do_image_splitting": True},
        "crossed_edges": {"size": {"shortest_edge": 19, "longest_edge": 12}},
        "clip": {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
        },
        "rescale_only": {"do_normalize": False, "rescale_factor": 0.0078431372549},
        "normalize_only": {"do_rescale": False, "image_mean": [128, 127.5, 0.1], "image_std": [64, 3, 0.7]},
        "exact_size": {"size": {"height": 17, "width": 23}, "resample": 1},
    }
    for name, options in variants.items():
        batch = batches.get(name, [[(37, 20)]])
        images = [[Image.fromarray(picture(w, h, i)) for i, (w, h) in enumerate(row)] for row in batch]
        processor = Idefics2ImageProcessorPil(**{"size": {"shortest_edge": 8, "longest_edge": 24}, **options})
        outputs = processor(images, return_tensors="np")
        tensors[f"{name}.pixel_values"] = outputs["pixel_values"].astype(np.float32)
        tensors[f"{name}.pixel_attention_mask"] = outputs["pixel_attention_mask"].astype(np.uint8)
        sizes = [[row, *size] for row, images_ in enumerate(batch) for size in images_]
        tensors[f"{name}.sizes"] = np.array(sizes, dtype=np.int64)
        tensors[f"{name}.config"] = np.frombuffer(processor.to_json_string().encode(), dtype=np.uint8)
    # Results of real sizes are too large to store; store their checksums.
    for width, height in [(1920, 1080), (300, 400), (777, 1203)]:
        for split in (False, True):
            processor = Idefics2ImageProcessorPil(do_image_splitting=split)
            values = processor([[Image.fromarray(picture(width, height))]], return_tensors="np")["pixel_values"]
            tensors[f"crc32.{width}x{height}.{int(split)}"] = np.array(
                [*values.shape, zlib.crc32(np.ascontiguousarray(values, dtype="<f4").tobytes())], dtype=np.int64
            )
    save_file(tensors, OUT / "image_idefics2.safetensors", METADATA)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    resize_fixture()
    decode_fixture()
    size_fixture()
    processor_fixture()
