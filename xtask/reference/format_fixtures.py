"""Writes small image files of many kinds, including damaged ones, and the pixels that Pillow decodes from them.

    python xtask/reference/format_fixtures.py

Versions: see requirements.txt. Output: idefics-image/tests/fixtures/formats/ and formats.safetensors, which contains
`NAME/white` and `NAME/drop` for every file that Pillow reads, and neither for files that it rejects.
"""

import io
import struct
import sys
import warnings
import zlib
from pathlib import Path

sys.modules["torchvision"] = None
warnings.simplefilter("ignore")

import numpy as np
import PIL
import transformers
from PIL import Image, ImageOps, PngImagePlugin
from safetensors.numpy import save_file
from transformers.image_transforms import convert_to_rgb

PICTURES = Path(__file__).parents[2] / "idefics-image" / "tests" / "fixtures"
FILES = PICTURES / "formats"
METADATA = {"transformers": transformers.__version__, "pillow": PIL.__version__, "script": "format_fixtures.py"}
W, H = 13, 9


def picture(width, height, seed=0):
    """[height, width, 3] u8, with the formula of processor_fixtures.py."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3].astype(np.uint32)
    ramp = x * (7 + seed) + y * (13 + 2 * seed) + c * 29
    edges = ((x // 5 + y // 3 + c) % 3) * 97
    noise = ((x * 2654435761 + y * 40503 + c * 97 + seed * 7919) >> 7) % 61
    return ((ramp + edges + noise) % 256).astype(np.uint8)


RGB = picture(W, H, 1)
GREY = np.ascontiguousarray(RGB[..., 0])
ALPHA = np.ascontiguousarray(picture(W, H, 2)[..., 1])
ALPHA[0, :4] = [0, 1, 254, 255]
RGBA = np.dstack([RGB, ALPHA])
INDEX = (np.arange(W * H).reshape(H, W) % 16).astype(np.uint8)
COLORS = picture(16, 1, 3)[0]


def write(name, data):
    (FILES / name).write_bytes(data)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(code, kind=3, order="<", count=1):
    """An EXIF block with the orientation stored as one value of any type."""
    formats = {1: "B3x", 3: "H2x", 4: "I", 6: "b3x", 8: "h2x", 9: "i", 11: "f", 13: "I"}
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = b"Exif\0\0" + mark + struct.pack(order + "I", 8) + struct.pack(order + "H", 1)
    if kind in (5, 10, 12, 16):
        long = {5: lambda: struct.pack(order + "II", code * 3, 3), 10: lambda: struct.pack(order + "ii", -code, -1),
                12: lambda: struct.pack(order + "d", code), 16: lambda: struct.pack(order + "Q", code)}[kind]()
        return head + struct.pack(order + "HHII", 0x112, kind, count, 26) + bytes(4) + long
    return head + struct.pack(order + "HHI", 0x112, kind, count) + struct.pack(order + formats[kind], code) + bytes(4)


XMP_ATTRIBUTE = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
XMP_ELEMENT = b"<x:xmpmeta><tiff:Orientation>8</tiff:Orientation></x:xmpmeta>"


# PNG


def chunk(kind, data, crc=None):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def png(rows, depth, color, *before, after=(), size=(W, H), interlace=0, idat=None, crc=None, end=True):
    raw = b"".join(b"\0" + bytes(row) for row in rows)
    data = zlib.compress(raw) if idat is None else idat
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, interlace))
    body = b"".join(before) + chunk(b"IDAT", data, crc) + b"".join(after)
    return b"\x89PNG\r\n\x1a\n" + header + body + (chunk(b"IEND", b"") if end else b"")


def packed(values, depth):
    bits = np.unpackbits(values[..., None].astype(np.uint8), axis=-1)[..., 8 - depth :]
    return np.packbits(bits.reshape(values.shape[0], -1), axis=1)


def interlaced(pixels, depth):
    """The rows of the seven passes of an interlaced PNG. Pixels are [height, width, samples]: one byte per sample, or packed."""
    rows = []
    for x0, y0, dx, dy in [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]:
        part = pixels[y0::dy, x0::dx]
        if part.size:
            rows += list(packed(part, depth)) if depth < 8 else [row.tobytes() for row in part]
    return rows


def png_files():
    rows = [row.tobytes() for row in RGB]
    raw = zlib.compress(b"".join(b"\0" + row for row in rows))
    text = chunk(b"tEXt", b"Comment\0hello")
    bad = chunk(b"tEXt", b"Comment\0hello", 7)
    write("idat_sum.png", png(rows, 8, 2, crc=0))
    write("no_end.png", png(rows, 8, 2, end=False))
    write("cut_in_pixels.png", png(rows, 8, 2)[:200])
    write("pixels_too_short.png", png(rows, 8, 2, idat=raw[: len(raw) // 2]))
    write("no_adler.png", png(rows, 8, 2, idat=raw[:-4]))
    write("wrong_adler.png", png(rows, 8, 2, idat=raw[:-4] + b"\0\0\0\0"))
    write("cut_at_adler.png", png(rows, 8, 2, end=False)[:-7])
    write("rows_missing.png", png(rows[:5], 8, 2))
    write("row_cut.png", png(rows[:5] + [rows[5][:4]], 8, 2))
    write("too_many_rows.png", png(rows + rows, 8, 2))
    write("text_sum_before.png", png(rows, 8, 2, bad))
    write("text_sum_behind.png", png(rows, 8, 2, after=[bad]))
    write("text_cut_behind.png", png(rows, 8, 2, after=[text], end=False)[:-8])
    write("header_cut_behind.png", png(rows, 8, 2, after=[b"\0\0\0"], end=False))
    write("name_damaged_behind.png", png(rows, 8, 2, after=[b"\0\0\0\x04*!*!abcd1234"]))
    write("header_sum.png", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 8, 2, 0, 0, 0), 1)
          + chunk(b"IDAT", raw) + chunk(b"IEND", b""))
    write("filter_unknown.png", png(rows, 8, 2, idat=zlib.compress(b"".join(b"\x09" + row for row in rows))))
    split = [chunk(b"IDAT", raw[at : at + 50]) for at in range(50, len(raw), 50)]
    write("many_idat.png", png(rows, 8, 2, idat=raw[:50], after=split))
    write("idat_interrupted.png", png(rows, 8, 2, idat=raw[:50], after=[text] + split))

    colors = chunk(b"PLTE", COLORS.tobytes())
    write("palette_sum.png", png(packed(INDEX, 4), 4, 3, chunk(b"PLTE", COLORS.tobytes(), 5)))
    write("palette_missing.png", png(packed(INDEX, 4), 4, 3))
    write("palette_short.png", png(packed(INDEX, 4), 4, 3, chunk(b"PLTE", COLORS[:7].tobytes())))
    write("palette_clear_beyond.png", png(packed(INDEX, 4), 4, 3, chunk(b"PLTE", COLORS[:7].tobytes()),
                                          chunk(b"tRNS", b"\xff" * 9 + b"\0")))
    for depth in (1, 2, 4, 8):
        values = INDEX % min(16, 2**depth)
        write(f"interlaced{depth}.png", png(interlaced(values, depth), depth, 3, colors, interlace=1))
    write("interlaced_rgb.png", png(interlaced(RGB, 8), 8, 2, interlace=1))
    write("interlaced_rgba.png", png(interlaced(RGBA, 8), 8, 6, interlace=1))
    small = picture(2, 3, 5)
    write("interlaced_small.png", png(interlaced(small, 8), 8, 2, size=(2, 3), interlace=1))

    bits = (GREY > 127).astype(np.uint8)
    for key in (0, 1, 255, 256):
        trns = chunk(b"tRNS", struct.pack(">H", key))
        write(f"bits_key{key}.png", png(packed(bits, 1), 1, 0, trns))
        write(f"grey_key{key}.png", png([np.where(row < 9, key % 256, row).astype(np.uint8) for row in GREY], 8, 0, trns))
    low = GREY.astype(">u2") // 2 * 3
    low[0, :3] = [0, 255, 256]
    for key in (None, 0, 255, 256, 300):
        trns = [] if key is None else [chunk(b"tRNS", struct.pack(">H", key))]
        write(f"grey16_key{key}.png", png([row.tobytes() for row in low], 16, 0, *trns))
    wide = lambda eight: (eight.astype(np.uint16) << 8 | (eight[::-1].astype(np.uint16) ^ 0x5A)).astype(">u2")
    write("rgb16.png", png([row.tobytes() for row in wide(RGB)], 16, 2))
    write("rgba16.png", png([row.tobytes() for row in wide(RGBA)], 16, 6))
    write("grey_alpha16.png", png([row.tobytes() for row in wide(np.dstack([GREY, ALPHA]))], 16, 4))
    write("rgb16_key.png", png([row.tobytes() for row in wide(RGB)], 16, 2, chunk(b"tRNS", struct.pack(
        ">HHH", *(0x5A00 | int(value) for value in RGB[2, 3])))))

    profile = exif(6)[6:]
    as_text = b"\nexif\n%8d\n" % len(profile) + b"\n".join(profile.hex().encode()[at : at + 72] for at in range(0, 99, 72))
    name = b"Raw profile type exif\0"
    write("profile_text.png", png(rows, 8, 2, chunk(b"tEXt", name + as_text)))
    write("profile_compressed.png", png(rows, 8, 2, chunk(b"zTXt", name + b"\0" + zlib.compress(as_text))))
    write("profile_international.png", png(rows, 8, 2, chunk(b"iTXt", name + b"\0\0\0\0" + as_text)))
    write("profile_behind.png", png(rows, 8, 2, after=[chunk(b"tEXt", name + as_text)]))
    write("profile_and_exif.png", png(rows, 8, 2, chunk(b"tEXt", name + as_text), chunk(b"eXIf", exif(3)[6:])))
    xmp = b"XML:com.adobe.xmp\0"
    write("xmp.png", png(rows, 8, 2, chunk(b"iTXt", xmp + b"\0\0\0\0" + XMP_ATTRIBUTE)))
    write("xmp_element.png", png(rows, 8, 2, chunk(b"iTXt", xmp + b"\0\0\0\0" + XMP_ELEMENT)))
    write("xmp_compressed.png", png(rows, 8, 2, chunk(b"iTXt", xmp + b"\1\0\0\0" + zlib.compress(XMP_ELEMENT))))
    write("xmp_not_utf8.png", png(rows, 8, 2, chunk(b"iTXt", xmp + b"\0\0\0\0\xff" + XMP_ELEMENT)))
    write("xmp_and_exif.png", png(rows, 8, 2, chunk(b"iTXt", xmp + b"\0\0\0\0" + XMP_ELEMENT), chunk(b"eXIf", exif(1)[6:])))
    write("exif_behind.png", png(rows, 8, 2, after=[chunk(b"eXIf", exif(5)[6:])]))
    for kind in (1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 16):
        write(f"exif_type{kind}.png", png(rows, 8, 2, chunk(b"eXIf", exif(6, kind, "<>"[kind % 2])[6:])))

    frame = lambda number, w, h, x, y: chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, w, h, x, y, 1, 10, 0, 0))
    animation = chunk(b"acTL", struct.pack(">II", 2, 0))
    second = [frame(1, W, H, 0, 0), chunk(b"fdAT", struct.pack(">I", 2) + raw)]
    write("animated.png", png(rows, 8, 2, animation, frame(0, W, H, 0, 0), after=second))
    write("animated_apart.png", png(rows, 8, 2, animation, after=[frame(0, W, H, 0, 0)]))
    part = [row.tobytes() for row in RGB[:4, :5]]
    write("animated_part.png", png(part, 8, 2, animation, frame(0, 5, 4, 3, 2), after=second))


# JPEG


def with_segments(data, *segments):
    body = b"".join(b"\xff" + bytes([kind]) + struct.pack(">H", len(payload) + 2) + payload for kind, payload in segments)
    return data[:2] + body + data[2:]


def jpeg_files():
    data = encoded(Image.fromarray(RGB), "JPEG", quality=90)
    name = b"http://ns.adobe.com/xap/1.0/\0"
    write("xmp.jpg", with_segments(data, (0xE1, name + XMP_ATTRIBUTE)))
    write("xmp_element.jpg", with_segments(data, (0xE1, name + XMP_ELEMENT)))
    write("xmp_twice.jpg", with_segments(data, (0xE1, name + XMP_ELEMENT), (0xE1, name + XMP_ATTRIBUTE)))
    write("xmp_and_exif.jpg", with_segments(data, (0xE1, name + XMP_ELEMENT), (0xE1, exif(3))))
    block = exif(6)
    write("exif_in_two.jpg", with_segments(data, (0xE1, block[:20]), (0xE1, b"Exif\0\0" + block[20:])))
    write("exif_long.jpg", with_segments(data, (0xE1, exif(6, 4, ">"))))
    write("no_end.jpg", data[:-2])
    write("half_end.jpg", data[:-1])
    write("cut.jpg", data[: len(data) * 3 // 4])
    write("junk_behind.jpg", data + b"junk")


# GIF and WebP


def gif_files():
    image = Image.fromarray(RGB)
    indexed = image.quantize(16)
    for interlace in (0, 1):
        write(f"interlace{interlace}.gif", encoded(indexed, "GIF", interlace=interlace))
    grey = Image.fromarray(GREY)
    write("grey.gif", encoded(grey, "GIF"))
    write("grey_clear.gif", encoded(grey, "GIF", transparency=int(GREY[2, 3])))
    data = encoded(indexed, "GIF")
    at = data.index(b",")
    moved = data[:at] + b"," + struct.pack("<HH", 3, 2) + data[at + 5 :]
    write("reaches_over.gif", moved)
    write("two_controls.gif", data[:at] + b"!\xf9\4\1\0\0\2\0" + b"!\xf9\4\0\0\0\5\0" + data[at:])
    write("cut.gif", data[: at + 60])
    write("no_trailer.gif", data[:-1])
    write("no_picture.gif", data[:at] + b";")
    frames = [indexed, Image.fromarray(RGB[::-1].copy()).quantize(16)]
    write("animated.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50, disposal=2))


def riff(*chunks):
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunks(data):
    at, found = 12, []
    while at + 8 <= len(data):
        length = struct.unpack("<I", data[at + 4 : at + 8])[0]
        found.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def webp_files():
    u24 = lambda value: struct.pack("<I", value)[:3]
    extended = lambda flags, w=W, h=H: (b"VP8X", bytes([flags, 0, 0, 0]) + u24(w - 1) + u24(h - 1))
    lossless = webp_chunks(encoded(Image.fromarray(RGB), "WEBP", lossless=True))[-1]
    clear = webp_chunks(encoded(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True))[-1]
    write("xmp.webp", riff(extended(4), lossless, (b"XMP ", XMP_ATTRIBUTE)))
    write("xmp_without_flag.webp", riff(extended(0), lossless, (b"XMP ", XMP_ATTRIBUTE)))
    write("exif_long.webp", riff(extended(8), lossless, (b"EXIF", exif(6, 4)[6:])))
    write("exif_with_name.webp", riff(extended(8), lossless, (b"EXIF", exif(5))))
    write("exif_and_xmp.webp", riff(extended(12), lossless, (b"EXIF", exif(1)), (b"XMP ", XMP_ELEMENT)))
    control = (b"ANIM", struct.pack("<IH", 0xFF8040C0, 0))
    for name, still, flags in [("opaque", lossless, 2), ("clear", clear, 0x12), ("clear_unflagged", clear, 2)]:
        for blend in (0, 1):
            frame = lambda x, y: (b"ANMF", u24(x // 2) + u24(y // 2) + u24(W - 1) + u24(H - 1) + u24(90)
                                  + bytes([2 * (1 - blend)]) + riff(still)[12:])
            write(f"animated_{name}{blend}.webp", riff(extended(flags), control, frame(0, 0), frame(0, 0)))
            write(f"animated_part_{name}{blend}.webp", riff(extended(flags, W + 5, H + 6), control, frame(4, 2), frame(0, 0)))
    write("cut.webp", riff(lossless)[:-20])
    smooth = Image.fromarray(picture(4, 3, 4)).resize((41, 31), 3)
    soft = Image.fromarray(picture(4, 3, 6)[..., 1].copy()).resize((41, 31), 3)
    write("lossy.webp", encoded(smooth, "WEBP", quality=80))
    both = smooth.copy()
    both.putalpha(soft)
    write("lossy_alpha.webp", encoded(both, "WEBP", quality=80))
    frames = [both, both.rotate(180)]
    write("lossy_animated.webp", encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=80))


# BMP, icons


def padded(rows, unit=4):
    return b"".join(bytes(row) + b"\0" * (-len(bytes(row)) % unit) for row in rows)


def dib(bits, pixels, palette=b"", masks=b"", compression=0, height=H, colors=0, header=40, width=W):
    if header == 12:
        return struct.pack("<IHHHH", 12, width, height, 1, bits) + palette + pixels
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(pixels), 2835, 2835, colors, 0)
    return head + masks.ljust(header - 40, b"\0") + (masks if header == 40 else b"") * (header == 40) + palette + pixels


def bmp(data, palette_and_pixels):
    offset = 14 + len(data) - palette_and_pixels
    return b"BM" + struct.pack("<IHHI", 14 + len(data), 0, 0, offset) + data


def bmp_files():
    up = lambda rows: padded(rows[::-1])
    red, green, blue = (RGB[..., at].astype(np.uint16) for at in range(3))
    rgb565 = ((red >> 3) << 11 | (green >> 2) << 5 | blue >> 3).astype("<u2")
    rgb555 = ((red >> 3) << 10 | (green >> 3) << 5 | blue >> 3).astype("<u2")
    rows = lambda words: up([row.tobytes() for row in words])
    masks = lambda *values: struct.pack(f"<{len(values)}I", *values)
    pixels = rows(rgb565)
    write("565.bmp", bmp(dib(16, pixels, masks=masks(0xF800, 0x7E0, 0x1F), compression=3), len(pixels)))
    write("555_masks.bmp", bmp(dib(16, pixels, masks=masks(0x7C00, 0x3E0, 0x1F), compression=3), len(pixels)))
    write("555.bmp", bmp(dib(16, rows(rgb555)), len(pixels)))
    write("444.bmp", bmp(dib(16, pixels, masks=masks(0xF00, 0xF0, 0xF), compression=3), len(pixels)))
    four = rows(RGBA)
    layouts = {"bgrx": (0xFF0000, 0xFF00, 0xFF, 0), "xbgr": (0xFF000000, 0xFF0000, 0xFF00, 0),
               "bgxr": (0xFF000000, 0xFF00, 0xFF, 0), "abgr": (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
               "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000), "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
               "bgar": (0xFF000000, 0xFF00, 0xFF, 0xFF0000), "none": (0, 0, 0, 0), "odd": (0xF, 0xF0, 0xF00, 0)}
    for name, values in layouts.items():
        write(f"masks_{name}.bmp", bmp(dib(32, four, masks=masks(*values), compression=3, header=56), len(four)))
    write("masks_52.bmp", bmp(dib(32, four, masks=masks(0xFF0000, 0xFF00, 0xFF), compression=3, header=52), len(four)))
    write("masks_v4.bmp", bmp(dib(32, four, masks=masks(*layouts["bgra"]), compression=3, header=108), len(four)))
    write("masks_v5.bmp", bmp(dib(32, four, masks=masks(*layouts["rgba"]), compression=3, header=124), len(four)))
    write("32.bmp", bmp(dib(32, four), len(four)))
    three = up([row[:, ::-1].tobytes() for row in RGB])
    write("24.bmp", bmp(dib(24, three), len(three)))
    write("24_top_down.bmp", bmp(dib(24, padded([row[:, ::-1].tobytes() for row in RGB]), height=-H), len(three)))
    write("24_v5.bmp", bmp(dib(24, three, header=124), len(three)))
    write("24_os2.bmp", bmp(dib(24, three, header=12), len(three)))
    write("24_os2_2.bmp", bmp(dib(24, three, header=64), len(three)))
    write("24_cut.bmp", bmp(dib(24, three), len(three))[:-9])
    write("24_last_padding.bmp", bmp(dib(24, three), len(three))[:-1])
    quads = np.dstack([COLORS[None, :, ::-1], np.zeros((1, 16, 1), np.uint8)]).tobytes()
    triples = COLORS[:, ::-1].tobytes()
    for bits in (1, 4, 8):
        pixels = up(packed(INDEX % min(16, 2**bits), bits))
        used = min(16, 2**bits)
        length = len(pixels)
        write(f"indexed{bits}.bmp", bmp(dib(bits, pixels, quads[: 4 * used], colors=used), length))
        full = triples[: 3 * used] + b"\0" * 3 * (2**bits - used)
        write(f"indexed{bits}_os2.bmp", bmp(dib(bits, pixels, full, header=12), length))
    ramp = b"".join(bytes([value] * 3 + [0]) for value in range(256))
    grey = up([row.tobytes() for row in GREY])
    write("grey.bmp", bmp(dib(8, grey, ramp), len(grey)))
    black = b"\0\0\0\0\xff\xff\xff\0"
    bits = up(packed((GREY > 99).astype(np.uint8), 1))
    write("bits.bmp", bmp(dib(1, bits, black), len(bits)))
    write("bits_swapped.bmp", bmp(dib(1, bits, black[4:] + black[:4]), len(bits)))
    write("bits_in_bytes.bmp", bmp(dib(8, grey, black, colors=2), len(grey)))
    write("two_bits.bmp", bmp(dib(2, up(packed(INDEX % 4, 2)), quads[:16]), 36))
    rle8 = b"".join(bytes([5, row % 16, 0, 3, 1, 2, 3, 0, W - 8, 7, 0, 0]) for row in range(H)) + b"\0\1"
    write("rle8.bmp", bmp(dib(8, rle8, quads, compression=1, colors=16), len(rle8)))
    jump = b"\4\1\0\2\2\1" + b"".join(bytes([W, row, 0, 0]) for row in range(H)) + b"\0\1"
    write("rle8_jump.bmp", bmp(dib(8, jump, quads, compression=1, colors=16), len(jump)))
    write("rle8_short.bmp", bmp(dib(8, rle8[:40] + b"\0\1", quads, compression=1, colors=16), 42))
    rle4 = b"".join(bytes([5, 0x12, 0, 4, 0x34, 0x56, W - 9, row % 16 * 16 + 3, 0, 0]) for row in range(H)) + b"\0\1"
    write("rle4.bmp", bmp(dib(4, rle4, quads, compression=2, colors=16), len(rle4)))
    write("rle_too_wide.bmp", bmp(dib(8, bytes([W + 9, 3, 0, 0]) * H, quads, compression=1, colors=16), 4 * H))
    write("jpeg_inside.bmp", bmp(dib(24, three, compression=4), len(three)))


def icon(*entries, kind=1):
    table, data = b"", b""
    for width, height, bits, picture, *colors in entries:
        offset = 6 + 16 * len(entries) + len(data)
        table += struct.pack("<BBBBHHII", width % 256, height % 256, (colors or [0])[0], 0, 1, bits, len(picture), offset)
        data += picture
    return struct.pack("<HHH", 0, kind, len(entries)) + table + data


def icon_files():
    mask = padded(packed((ALPHA > 99).astype(np.uint8), 1)[::-1])
    up = lambda rows: padded(rows[::-1])
    four = up(RGBA[..., [2, 1, 0, 3]])
    three = up([row[:, ::-1].tobytes() for row in RGB])
    quads = np.dstack([COLORS[None, :, ::-1], np.zeros((1, 16, 1), np.uint8)]).tobytes()
    d32 = dib(32, four, height=2 * H) + mask
    d24 = dib(24, three, height=2 * H) + mask
    write("32.ico", icon((W, H, 32, d32)))
    write("24.ico", icon((W, H, 24, d24)))
    write("32_as_24.ico", icon((W, H, 24, d32)))
    for bits in (1, 4, 8):
        pixels = up(packed(INDEX % min(16, 2**bits), bits))
        used = min(16, 2**bits)
        write(f"{bits}.ico", icon((W, H, bits, dib(bits, pixels, quads[: 4 * used], height=2 * H, colors=used) + mask)))
    write("png.ico", icon((W, H, 32, encoded(Image.fromarray(RGBA), "PNG"))))
    indexed = Image.fromarray(RGB).quantize(8)
    write("png_indexed.ico", icon((W, H, 8, encoded(indexed, "PNG", transparency=3))))
    turned = encoded(Image.fromarray(RGB), "PNG", exif=exif(6))
    write("png_turned.ico", icon((W, H, 24, turned)))
    small = encoded(Image.fromarray(RGB[:4, :5]), "PNG")
    write("several.ico", icon((5, 4, 32, small), (W, H, 32, d32), (W, H, 24, d24), (5, 4, 24, small)))
    write("by_colors.ico", icon((W, H, 0, d24, 16), (W, H, 0, d32, 4)))
    write("other_size.ico", icon((20, 20, 32, small)))
    write("no_entries.ico", icon())
    write("mask_overlaps.ico", encoded(Image.fromarray(picture(48, 48, 1)), "ICO", sizes=[(48, 48)], bitmap_format="bmp"))
    write("cut.ico", icon((W, H, 24, d24))[:-6])
    write("cut_pixels.ico", icon((W, H, 32, d32))[:200])
    black = b"\0\0\0\0\xff\xff\xff\0"
    bits = up(packed((GREY > 99).astype(np.uint8), 1))
    write("bits.ico", icon((W, H, 1, dib(1, bits, black, height=2 * H) + mask)))
    write("bits.cur", icon((W, H, 0, dib(1, bits, black, height=2 * H) + mask), kind=2))
    write("32.cur", icon((W, H, 0, d32), kind=2))
    write("24.cur", icon((W, H, 0, d24), kind=2))
    small = dib(24, three[: 8 * 2], height=4, width=2) + mask
    write("several.cur", icon((2, 2, 0, small), (W, H, 0, d32), kind=2))


# PNM, TGA


def pnm_files():
    size = b"%d %d\n" % (W, H)
    bits = (GREY > 127).astype(np.uint8)
    plain = lambda values: b"\n".join(b" ".join(b"%d" % value for value in row.ravel()) for row in values)
    write("p1.pbm", b"P1\n# a comment\n" + size + b"\n".join(b"".join(b"%d" % bit for bit in row) for row in bits))
    write("p1_comment.pbm", b"P1 " + size + b"\n#x\n".join(plain(bits[at : at + 1]) for at in range(H)))
    write("p1_junk.pbm", b"P1\n" + size + plain(bits) + b" 2")
    write("p4.pbm", b"P4\n" + size + packed(bits, 1).tobytes())
    write("p4_cut.pbm", b"P4\n" + size + packed(bits, 1).tobytes()[:-1])
    for maxval in (1, 7, 100, 254, 255, 256, 1000, 65534, 65535):
        grey = (GREY.astype(np.uint32) * maxval // 255).astype(np.uint16)
        rgb = (RGB.astype(np.uint32) * maxval // 255).astype(np.uint16)
        kind = ">u2" if maxval > 255 else "u1"
        head = size + b"%d\n" % maxval
        write(f"p5_{maxval}.pgm", b"P5\n" + head + grey.astype(kind).tobytes())
        write(f"p6_{maxval}.ppm", b"P6\n" + head + rgb.astype(kind).tobytes())
        if maxval in (7, 255, 1000):
            write(f"p2_{maxval}.pgm", b"P2\n" + head + plain(grey))
            write(f"p3_{maxval}.ppm", b"P3\n" + head + plain(rgb) + b"\n")
    write("p5_low.pgm", b"P5\n" + size + b"65535\n" + (GREY.astype(">u2") * 2).tobytes())
    write("p5_beyond.pgm", b"P5\n" + size + b"99\n" + GREY.tobytes())
    write("p2_beyond.pgm", b"P2\n" + size + b"99\n" + plain(GREY))
    write("p2_joined.pgm", b"P2\n2 1\n255\n1#c\n2 34")
    write("p6_header.ppm", b"P6 # one\n#two\n" + b"%d#three\n\t%d\r\n255\n" % (W, H) + RGB.tobytes())
    write("p6_comment_in_number.ppm", b"P6\n1#c\n3 9\n255\n" + RGB.tobytes())
    write("p6_cut.ppm", b"P6\n" + size + b"255\n" + RGB.tobytes()[:-1])
    write("p6_zero.ppm", b"P6\n" + size + b"0\n" + RGB.tobytes())
    write("p3_cut.ppm", b"P3\n" + size + b"255\n" + plain(RGB)[:-9])
    write("p3_word.ppm", b"P3\n" + size + b"255\n1 2 three")
    floats = np.linspace(-20, 300, W * H).reshape(H, W)
    write("little.pfm", b"Pf\n" + size + b"-1.0\n" + floats.astype("<f4").tobytes())
    write("big.pfm", b"Pf\n" + size + b"2.5\n" + floats.astype(">f4").tobytes())
    write("zero.pfm", b"Pf\n" + size + b"0\n" + floats.astype(">f4").tobytes())


def tga(kind, depth, data, flags=0, palette=(0, 0, 0, 0), entries=b"", ident=b"", size=(W, H)):
    has, start, length, bits = palette
    head = struct.pack("<BBBHHBHHHHBB", len(ident), has, kind, start, length, bits, 0, 0, *size, depth, flags)
    return head + ident + entries + data


def runs(rows, size):
    """Compress rows of pixels for TGA: packets of repeated and of literal pixels alternate and do not cross rows."""
    out = b""
    for row in rows:
        pixels = [row[at : at + size] for at in range(0, len(row), size)]
        out += bytes([0x82]) + pixels[0] + bytes([len(pixels) - 4]) + b"".join(pixels[3:])
    return out


def tga_files():
    bgr = [row[:, ::-1].tobytes() for row in RGB]
    bgra = [row.tobytes() for row in RGBA[..., [2, 1, 0, 3]]]
    words = (RGB.astype(np.uint16) >> 3)
    bgr15 = (words[..., 0] << 10 | words[..., 1] << 5 | words[..., 2] | (ALPHA.astype(np.uint16) >> 7) << 15).astype("<u2")
    for flags in (0, 0x10, 0x20, 0x30):
        write(f"24_{flags:02x}.tga", tga(2, 24, b"".join(bgr), flags))
        write(f"24_runs_{flags:02x}.tga", tga(10, 24, runs(bgr, 3), flags))
    write("32.tga", tga(2, 32, b"".join(bgra), 0x28))
    write("32_runs.tga", tga(10, 32, runs(bgra, 4), 8))
    write("16.tga", tga(2, 16, bgr15.tobytes(), 0x20))
    write("16_runs.tga", tga(10, 16, runs([row.tobytes() for row in bgr15], 2)))
    write("grey.tga", tga(3, 8, GREY.tobytes()))
    write("grey_runs.tga", tga(11, 8, runs([row.tobytes() for row in GREY], 1)))
    both = np.dstack([GREY, ALPHA])
    write("grey_alpha.tga", tga(3, 16, both.tobytes()))
    bits = (GREY > 99).astype(np.uint8)
    write("bits.tga", tga(3, 1, packed(bits, 1).tobytes()))
    index = [row.tobytes() for row in INDEX]
    colors = COLORS[:, ::-1].tobytes()
    write("indexed.tga", tga(1, 8, b"".join(index), palette=(1, 0, 16, 24), entries=colors, ident=b"name"))
    write("indexed_start.tga", tga(1, 8, b"".join(index), palette=(1, 3, 13, 24), entries=colors[:39]))
    write("indexed_runs.tga", tga(9, 8, runs(index, 1), palette=(1, 0, 16, 24), entries=colors))
    write("indexed_16.tga", tga(1, 8, b"".join(index), palette=(1, 0, 16, 16), entries=bgr15[0].tobytes() + bgr15[1, :3].tobytes()))
    four = np.dstack([COLORS[None, :, ::-1], ALPHA.ravel()[None, :16, None]]).tobytes()
    write("indexed_32.tga", tga(1, 8, b"".join(index), palette=(1, 0, 16, 32), entries=four))
    write("indexed_15.tga", tga(1, 8, b"".join(index), palette=(1, 0, 16, 15), entries=bgr15[:2].tobytes()))
    write("indexed_without.tga", tga(1, 8, b"".join(index)))
    write("24_with_palette.tga", tga(2, 24, b"".join(bgr), palette=(1, 0, 16, 24), entries=colors))
    write("grey_with_palette.tga", tga(3, 8, GREY.tobytes(), palette=(1, 0, 16, 24), entries=colors))
    write("cut.tga", tga(2, 24, b"".join(bgr))[:-1])
    write("cut_runs.tga", tga(10, 24, runs(bgr, 3))[:-1])
    write("run_over_row.tga", tga(10, 24, bytes([0x80 | W]) + b"abc" + runs(bgr, 3)))
    write("literals_over_rows.tga", tga(10, 24, bytes([W * 2 - 1]) + b"".join(bgr[:2]) + runs(bgr[2:], 3)))
    footer = lambda offset: struct.pack("<II", offset, 0) + b"TRUEVISION-XFILE.\0"
    pixels = tga(2, 32, b"".join(bgra))
    for attributes in (0, 3):
        area = bytes(494) + bytes([attributes])
        write(f"footer{attributes}.tga", pixels + area + footer(len(pixels)))


# AVIF, JPEG 2000


def avif_files():
    smooth = Image.fromarray(picture(5, 4, 4)).resize((37, 27), 3)
    clear = smooth.copy()
    clear.putalpha(Image.fromarray(picture(4, 3, 6)[..., 1].copy()).resize((37, 27), 3))
    for sampling in ("4:2:0", "4:2:2", "4:4:4", "4:0:0"):
        write(f"{sampling.replace(':', '')}.avif", encoded(smooth, "AVIF", subsampling=sampling, quality=70))
        write(f"{sampling.replace(':', '')}_alpha.avif", encoded(clear, "AVIF", subsampling=sampling, quality=70))
    write("limited.avif", encoded(smooth, "AVIF", range="limited", quality=70))
    write("premultiplied.avif", encoded(clear, "AVIF", alpha_premultiplied=True, quality=70))
    write("grey.avif", encoded(smooth.convert("L"), "AVIF", quality=70))
    for orientation in range(2, 9):
        write(f"turned{orientation}.avif", encoded(smooth, "AVIF", exif=exif(orientation), quality=50))
    write("xmp.avif", encoded(smooth, "AVIF", xmp=XMP_ATTRIBUTE, quality=50))
    write("even.avif", encoded(smooth.crop((0, 0, 36, 26)), "AVIF", quality=70))
    write("one.avif", encoded(smooth.crop((3, 3, 4, 4)), "AVIF", quality=90))
    write("animated.avif", encoded(smooth, "AVIF", save_all=True, append_images=[smooth.rotate(180)], quality=70))
    write("cut.avif", encoded(smooth, "AVIF", quality=70)[:-30])


def jpeg2000_files():
    image = Image.fromarray(RGB)
    write("rgb.jp2", encoded(image, "JPEG2000"))
    write("rgb.j2k", encoded(image, "JPEG2000", no_jp2=True))
    write("rgb_mct.jp2", encoded(image, "JPEG2000", mct=1))
    write("rgba.jp2", encoded(Image.fromarray(RGBA), "JPEG2000"))
    write("grey.jp2", encoded(Image.fromarray(GREY), "JPEG2000"))
    write("grey.j2k", encoded(Image.fromarray(GREY), "JPEG2000", no_jp2=True))
    write("grey_alpha.jp2", encoded(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "JPEG2000"))
    wide = Image.fromarray((GREY.astype(np.uint16) * 3))
    write("grey16.jp2", encoded(wide, "JPEG2000"))
    write("tiles.jp2", encoded(Image.fromarray(picture(40, 30, 7)), "JPEG2000", tile_size=(16, 16)))
    smooth = Image.fromarray(picture(5, 4, 4)).resize((64, 48), 3)
    write("lossy.jp2", encoded(smooth, "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[40]))
    write("layers.jp2", encoded(smooth, "JPEG2000", quality_mode="rates", quality_layers=[20, 10, 5]))
    write("signed.jp2", encoded(image, "JPEG2000", signed=True))
    write("cut.jp2", encoded(image, "JPEG2000")[:-40])


def main():
    FILES.mkdir(parents=True, exist_ok=True)
    for old in FILES.iterdir():
        old.unlink()
    for make in (png_files, jpeg_files, gif_files, webp_files, bmp_files, icon_files, pnm_files, tga_files, avif_files,
                 jpeg2000_files):
        make()
    expected = {}
    for path in sorted(FILES.iterdir()):
        try:
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened)
                white, drop = (np.array(convert_to_rgb(image)) for image in (upright, upright.convert("RGB")))
        except Exception as error:
            print(f"{path.name}: refused: {type(error).__name__}: {error}")
            continue
        if path.name == "mask_overlaps.ico":  # Pillow wrote the mask without padding and reads colours as the mask
            white = drop
        expected[f"{path.name}/white"] = np.ascontiguousarray(white)
        expected[f"{path.name}/drop"] = np.ascontiguousarray(drop)
    save_file(expected, PICTURES / "formats.safetensors", METADATA)
    print(f"{len(list(FILES.iterdir()))} files, {len(expected) // 2} read")


main()
