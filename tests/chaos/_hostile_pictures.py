"""Pictures made to hurt who decodes them, and what may become of each: a reason, or None where it is odd but good."""

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.unit.data_helpers import picture

Picture = Callable[[int, random.Random], bytes]
Outcome = str | None
FINE: frozenset[Outcome] = frozenset([None])
TOO_MANY: frozenset[Outcome] = frozenset(["too_many_pixels"])
BROKEN: frozenset[Outcome] = frozenset(["truncated", "not_an_image"])
FOREIGN: frozenset[Outcome] = frozenset(["not_an_image"])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_with(seed: int, *extra: bytes) -> bytes:
    data = picture(seed, image_format="PNG")
    return data[:33] + b"".join(extra) + data[33:]  # behind the header


def png_bomb(seed: int, rng: random.Random) -> bytes:
    side = rng.randrange(30_000, 60_000)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(bytes(1 << 22), 9))
    return b"\x89PNG\r\n\x1a\n" + header + body + _chunk(b"IEND", b"")


def jpeg_bomb(seed: int, rng: random.Random) -> bytes:
    data = bytearray(picture(seed, image_format="JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", rng.randrange(60_000, 65_500), 65_000)
    return bytes(data)


def webp_bomb(seed: int, rng: random.Random) -> bytes:
    side = (rng.randrange(1 << 22, 1 << 24)).to_bytes(3, "little")
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + side + b"\xff\x0f\0"
    body = b"WEBP" + canvas + picture(seed)[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _cut(image_format: str) -> Picture:
    def made(seed: int, rng: random.Random) -> bytes:
        data = picture(seed, width=128, height=128, image_format=image_format)
        return data[: rng.randrange(len(data) // 4, len(data) // 2)]

    return made


def _begins(magic: bytes) -> Picture:
    return lambda seed, rng: magic + rng.randbytes(rng.randrange(10, 5000))


def gif(seed: int, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.open(io.BytesIO(picture(seed + shift))).convert("P") for shift in (0, 1)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _animated(image_format: str) -> Picture:
    def made(seed: int, rng: random.Random) -> bytes:
        buffer = io.BytesIO()
        frames = [Image.open(io.BytesIO(picture(seed + shift))).convert("RGB") for shift in (0, 1, 2)]
        frames[0].save(buffer, image_format, save_all=True, append_images=frames[1:], duration=10)
        return buffer.getvalue()

    return made


def jpeg_and_zip(seed: int, rng: random.Random) -> bytes:
    return picture(seed, image_format="JPEG") + b"PK\x03\x04" + rng.randbytes(200)


def jpeg_with_script(seed: int, rng: random.Random) -> bytes:
    data = picture(seed, image_format="JPEG")
    script = b"*/=1;alert(1)/*" + rng.randbytes(20).hex().encode()
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(script) + 2) + script + data[2:]


def bad_exif(seed: int, rng: random.Random) -> bytes:
    data = picture(seed, image_format="JPEG")
    tags = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 65535) + rng.randbytes(400)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags + data[2:]


def exif_loop(seed: int, rng: random.Random) -> bytes:
    """Its directory says that the next one is itself."""
    data = picture(seed, image_format="JPEG")
    entry = struct.pack(">HHII", 0x0112, 3, 1, rng.randrange(1 << 16) << 16)
    tags = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 8)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags + data[2:]


def cmyk(seed: int, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(seed))).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def sixteen_bits(seed: int, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    grey = np.random.default_rng(seed).integers(0, 1 << 16, (48, 48)).astype(np.uint16)
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def icc_bomb(seed: int, rng: random.Random) -> bytes:
    return _png_with(seed, _chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(1 << 28), 9)))


def text_bomb(seed: int, rng: random.Random) -> bytes:
    return _png_with(seed, *[_chunk(b"zTXt", b"t%d\0\0" % number + zlib.compress(bytes(1 << 26), 9)) for number in range(8)])


def at_the_bound(seed: int, rng: random.Random) -> bytes:
    """As many pixels as are allowed, of one colour with a stripe, with transparency."""
    buffer = io.BytesIO()
    pixels = np.zeros((2000, 2000, 4), np.uint8)
    pixels[:, seed % 1900 : seed % 1900 + 50] = 200 + seed % 50
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


KINDS: dict[str, tuple[Picture, frozenset[Outcome]]] = {
    "png_bomb": (png_bomb, TOO_MANY),
    "jpeg_bomb": (jpeg_bomb, TOO_MANY | BROKEN),
    "webp_bomb": (webp_bomb, TOO_MANY),
    "at_the_bound": (at_the_bound, FINE),
    "icc_bomb": (icc_bomb, FINE | BROKEN),
    "text_bomb": (text_bomb, FINE | BROKEN),
    "jpeg_cut": (_cut("JPEG"), BROKEN),
    "png_cut": (_cut("PNG"), BROKEN),
    "webp_cut": (_cut("WEBP"), BROKEN),
    "jpeg_noise": (_begins(b"\xff\xd8\xff\xe0"), BROKEN),
    "png_noise": (_begins(b"\x89PNG\r\n\x1a\n"), BROKEN),
    "webp_noise": (_begins(b"RIFF\xff\xff\x00\x00WEBPVP8 "), BROKEN | TOO_MANY),
    "gif_animated": (gif, FOREIGN),
    "html": (_begins(b"<html><script>"), FOREIGN),
    "svg": (_begins(b"<svg xmlns='http://www.w3.org/2000/svg'>"), FOREIGN),
    "pdf": (_begins(b"%PDF-1.7\n"), FOREIGN),
    "tiff": (_begins(b"II*\0"), FOREIGN),
    "postscript": (_begins(b"%!PS-Adobe-3.0 EPSF-3.0\n"), FOREIGN),
    "empty": (lambda seed, rng: b"", FOREIGN),
    "jpeg_and_zip": (jpeg_and_zip, FINE),
    "jpeg_with_script": (jpeg_with_script, FINE),
    "bad_exif": (bad_exif, FINE | BROKEN),
    "exif_loop": (exif_loop, FINE | BROKEN),
    "webp_animated": (_animated("WEBP"), FINE),
    "png_animated": (_animated("PNG"), FINE),
    "cmyk": (cmyk, FINE),
    "sixteen_bits": (sixteen_bits, FINE),
    "wrong_suffix": (lambda seed, rng: picture(seed, image_format="PNG"), FINE),
    "one_pixel": (lambda seed, rng: picture(seed, width=1, height=1, image_format="PNG"), frozenset(["too_small"])),
    "a_line": (lambda seed, rng: picture(seed, width=4000, height=40, image_format="PNG"), frozenset(["too_elongated"])),
}
