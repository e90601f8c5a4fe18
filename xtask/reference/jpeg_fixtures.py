"""Writes JPEG files and the pixels that Pillow decodes from them, for idefics-image. Usage: python jpeg_fixtures.py

Output: ../../idefics-image/tests/fixtures/jpeg.safetensors, with the bytes of each file under its name, and width, height and
the SHA-256 of `convert("RGB")` under `<name>/rgb`. If Pillow rejects a file, there is no `<name>/rgb`.
"""

import hashlib
import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

HERE = Path(__file__).parent
OUT = HERE.parent.parent / "idefics-image" / "tests" / "fixtures" / "jpeg.safetensors"
COFFEE = Image.open(HERE.parent / "images" / "coffee.jpg").convert("RGB")
RANDOM = np.random.default_rng(7)


def photo(width, height):
    return COFFEE.crop((150, 100, 150 + max(width, 40), 100 + max(height, 40))).resize((width, height), 3)


def noise(width, height, contrast=255):
    low = (255 - contrast) // 2
    return Image.fromarray(RANDOM.integers(low, low + contrast + 1, (height, width, 3), dtype=np.uint8))


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def segments(file):
    """The (marker, parameters) pairs up to the first scan, and the bytes from the end of its header to the end of the image."""
    at, found = 2, []
    while True:
        marker, length = file[at + 1], struct.unpack(">H", file[at + 2 : at + 4])[0]
        found.append((marker, file[at + 4 : at + 2 + length]))
        at += 2 + length
        if marker == 0xDA:
            assert file[-2:] == b"\xff\xd9"
            return found, file[at:-2]


def segment(marker, parameters):
    return bytes([0xFF, marker]) + struct.pack(">H", len(parameters) + 2) + parameters


def frame(width, height, factors, ids=b"\1\2\3\4"):
    entries = b"".join(bytes([ids[i], h << 4 | v, 0]) for i, (h, v) in enumerate(factors))
    return segment(0xC0, struct.pack(">BHHB", 8, height, width, len(factors)) + entries)


def scan(components, ids=b"\1\2\3\4"):
    entries = b"".join(bytes([ids[i], 0]) for i in components)
    return segment(0xDA, bytes([len(components)]) + entries + b"\0\x3f\0")


def sampled(width, height, factors, application=b"", ids=b"\1\2\3\4", separate=False):
    """A file with any sampling factors: blocks of grey images, distributed to components that share their tables."""
    max_h, max_v = max(h for h, _ in factors), max(v for _, v in factors)
    units = -(-width // (8 * max_h)) * -(-height // (8 * max_v))
    head = lambda parts: b"\xff\xd8" + application + b"".join(segment(m, p) for m, p in parts if m in (0xDB, 0xC4))
    grey = lambda width, height: segments(jpeg(noise(width, height, 90).convert("L"), quality=60))
    if separate:
        sizes = [(-(-width * h // max_h), -(-height * v // max_v)) for h, v in factors]
        scans = [grey(*size) for size in sizes]
        data = b"".join(scan([i], ids) + data for i, (_, data) in enumerate(scans))
        return head(scans[0][0]) + frame(width, height, factors, ids) + data + b"\xff\xd9"
    parts, data = grey(8 * units, 8 * sum(h * v for h, v in factors))
    every = range(len(factors))
    return head(parts) + frame(width, height, factors, ids) + scan(every, ids) + data + b"\xff\xd9"


def adobe(transform):
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def written_by_pillow():
    kinds = {"": {}, "_progressive": {"progressive": True}, "_restarts": {"restart_marker_blocks": 2}}
    kinds["_optimized"] = {"optimize": True}
    sizes = [(1, 1), (2, 3), (5, 4), (17, 33), (40, 30)]
    for number, (width, height) in enumerate(sizes):
        for sampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
            for kind, options in kinds.items():
                quality = [5, 30, 75, 90, 100][(number + len(kind)) % 5]
                image = (photo, noise)[(number + len(kind)) % 2](width, height)
                name = f"{width}x{height}_{sampling.replace(':', '')}_q{quality}{kind}"
                yield name, jpeg(image, quality=quality, subsampling=sampling, **options)
    for width, height in [(1, 1), (17, 33), (31, 16)]:
        image = photo(width, height)
        for kind, options in kinds.items():
            yield f"{width}x{height}_grey{kind}", jpeg(image.convert("L"), quality=85, **options)
            yield f"{width}x{height}_cmyk{kind}", jpeg(image.convert("CMYK"), quality=85, **options)
            yield f"{width}x{height}_rgb{kind}", jpeg(image, quality=85, keep_rgb=True, **options)
    yield "8x1000_420", jpeg(photo(8, 1000), quality=60)
    yield "1000x8_420_progressive", jpeg(photo(1000, 8), quality=60, progressive=True)
    for quality in (5, 50, 95, 100):
        yield f"120x90_420_q{quality}", jpeg(photo(120, 90), quality=quality)


def dealt_out():
    samplings = {
        "440": [(1, 2), (1, 1), (1, 1)],
        "410": [(4, 2), (1, 1), (1, 1)],
        "1x4": [(1, 4), (1, 1), (1, 1)],
        "4x2_of_2x1": [(4, 2), (2, 1), (1, 1)],
        "4x1_of_2x1": [(4, 1), (2, 1), (2, 1)],
        "2x4_of_1x2": [(2, 4), (1, 2), (1, 1)],
        "3x1": [(3, 1), (1, 1), (1, 1)],
        "3x3": [(3, 3), (1, 1), (1, 1)],
        "small_luminance": [(1, 1), (2, 2), (2, 1)],
        "mixed": [(2, 1), (1, 2), (1, 1)],
        "all_2x2": [(2, 2), (2, 2), (2, 2)],
        "fraction": [(3, 1), (2, 1), (1, 1)],
    }
    for name, factors in samplings.items():
        for width, height in [(1, 1), (9, 5), (50, 37)]:
            for separate in (False, True):
                kind = "_separate" if separate else ""
                if separate or sum(h * v for h, v in factors) <= 10:
                    yield f"{name}_{width}x{height}{kind}", sampled(width, height, factors, separate=separate)
    three, four = [(1, 1)] * 3, [(1, 1)] * 4
    jfif = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    for transform in (0, 1, 2, 7):
        yield f"adobe{transform}_three", sampled(20, 11, three, adobe(transform))
        yield f"adobe{transform}_four", sampled(20, 11, four, adobe(transform))
        yield f"adobe{transform}_jfif", sampled(20, 11, three, adobe(transform) + jfif)
    yield "ycck_420", sampled(21, 19, [(2, 2), (1, 1), (1, 1), (2, 2)], adobe(2))
    yield "named_rgb", sampled(20, 11, three, ids=b"RGB")
    yield "named_bgr", sampled(20, 11, three, ids=b"BGR")
    yield "named_twice", sampled(20, 11, three, ids=b"\1\1\1")
    yield "two_components", sampled(20, 11, [(1, 1)] * 2)


def unusual():
    plain = jpeg(photo(50, 37), quality=80)
    parts, data = segments(plain)
    restarts = jpeg(noise(70, 20), quality=50, restart_marker_blocks=1)
    join = lambda parts, data: b"\xff\xd8" + b"".join(segment(m, p) for m, p in parts) + data
    yield "garbage_behind", plain + b"garbage\xff\xd8\xff"
    yield "standard_tables_left_out", join([(m, p) for m, p in parts if m != 0xC4], data + b"\xff\xd9")
    yield "fill_bytes", plain.replace(b"\xff\xc0", b"\xff\xff\xff\xff\xc0").replace(b"\xff\xda", b"\xff\xff\xda")
    yield "junk_between_segments", plain.replace(b"\xff\xc0", b"\1\2\xff\0\3\xff\xc0")
    yield "fill_bytes_in_data", join(parts, data.replace(b"\xff\0", b"\xff\xff\xff\0") + b"\xff\xff\xff\xd9")
    yield "data_ends_early", join(parts, data[: len(data) // 2] + b"\xff\xd9")
    yield "no_data", join(parts, b"\xff\xd9")
    yield "extended_sequential", plain.replace(b"\xff\xc0", b"\xff\xc1")
    yield "two_frames", plain.replace(b"\xff\xc0", b"\xff\xc0\0\x0b\x08\0\x08\0\x08\1\1\x11\0\xff\xc0")
    yield "two_pictures_without_an_end", join(parts, data) + plain[2:]
    yield "no_quantization", join([(m, p) for m, p in parts if m != 0xDB], data + b"\xff\xd9")
    yield "wide_quantization", join(
        [(m, bytes([p[0] | 16]) + b"".join(bytes([0, v]) for v in p[1:65]) if m == 0xDB else p) for m, p in parts],
        data + b"\xff\xd9",
    )
    for first, second in [(0, 1), (1, 2), (2, 5), (3, 3), (1, 7)]:
        changed = bytearray(restarts)
        places = [at for at in range(len(changed) - 1) if changed[at] == 0xFF and 0xD0 <= changed[at + 1] <= 0xD7]
        changed[places[first] + 1] = 0xD0 + second
        yield f"restart_{first}_says_{second}", bytes(changed)
    lost = [at for at in range(len(restarts) - 1) if restarts[at] == 0xFF and 0xD0 <= restarts[at + 1] <= 0xD7]
    yield "restart_lost", restarts[: lost[1]] + restarts[lost[1] + 2 :]
    yield "interval_lost", restarts[: lost[1]] + restarts[lost[2] :]
    for seed in range(40):
        source = (plain, restarts)[seed % 2]
        changed = bytearray(source)
        start = len(source) - len(segments(source)[1])
        for _ in range(1 + seed % 5):
            changed[int(RANDOM.integers(start, len(source) - 2))] = int(RANDOM.integers(0, 255))
        yield f"damaged_{seed}", bytes(changed)


def decoded(file):
    """Width, height and digest; None if Pillow fails."""
    try:
        image = Image.open(io.BytesIO(file)).convert("RGB")
    except Exception:
        return None
    return struct.pack("<II", *image.size) + hashlib.sha256(image.tobytes()).digest()


def main():
    tensors = {}
    for name, file in [*written_by_pillow(), *dealt_out(), *unusual()]:
        assert name not in tensors, name
        tensors[name] = np.frombuffer(file, dtype=np.uint8)
        tensors[f"{name}/rgb"] = np.frombuffer(decoded(file) or b"", dtype=np.uint8)
    save_file(tensors, OUT, {"made_by": "xtask/reference/jpeg_fixtures.py", "pillow": Image.__version__})
    refused = [name for name in tensors if "/" not in name and not tensors[f"{name}/rgb"].size]
    print(len(tensors) // 2, "files,", OUT.stat().st_size, "bytes; refused:", *refused)


if __name__ == "__main__":
    main()
