"""Pictures for `fuzz`: good ones of many kinds, and what a rare or a hostile hand makes of them."""

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from data_prep.sample.pictures import read_sample
from tests.chaos._fuzz_mutations import BYTE_MUTATIONS, FORMAT_MUTATIONS, MAX_BYTES, png_of
from tests.chaos._hostile_pictures import KINDS

NUM_BASES = 6
HOSTILE_EACH = 8
SLOW = frozenset({"icc_bomb", "text_bomb", "at_the_bound"})
"""Of the hostile kinds: these take long to make or to decode, so there is one of each, and it goes seldom."""
SLOW_SHARE = 0.01


class Pictures:
    """Good pictures to begin with; draws mutated ones."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        stored = rng.sample(read_sample()["image"].to_pylist(), NUM_BASES)
        self.good: list[bytes] = [made for data in stored for made in _encodings(data, rng)]
        self._seed = seed
        self._slow: dict[str, bytes] = {}
        hostile = [kind for kind in sorted(KINDS.keys() - SLOW) for _ in range(HOSTILE_EACH)]
        self._hostile = [(kind, KINDS[kind][0](rng.randrange(1000), rng)) for kind in hostile]

    def draw(self, rng: random.Random) -> tuple[str, bytes]:
        """What was done, and the picture."""
        chance = rng.random()
        if chance < SLOW_SHARE:
            kind = rng.choice(sorted(SLOW))
            if kind not in self._slow:
                self._slow[kind] = KINDS[kind][0](self._seed, random.Random(self._seed))
            return kind, self._slow[kind]
        if chance < 0.15:
            return rng.choice(self._hostile)
        data = rng.choice(self.good)
        if chance < 0.25:
            return "good", data
        if chance < 0.30:
            other = rng.choice(self.good)
            return "splice", data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
        of_format = FORMAT_MUTATIONS[data[:2]]
        names = [*(of_format if rng.random() < 0.6 else BYTE_MUTATIONS)]
        kinds = rng.choices(names, k=rng.choice((1, 1, 1, 2, 4)))
        for kind in kinds:
            data = (of_format | BYTE_MUTATIONS)[kind](data, rng)[:MAX_BYTES]
        return kinds[0], data


# ---- good pictures ----------------------------------------------------------------------------------------------------


def _encodings(data: bytes, rng: random.Random) -> list[bytes]:
    """One picture as the formats have it."""
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((rng.randrange(40, 120), rng.randrange(40, 120)))
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(1, 9)
    rgba = image.copy()
    rgba.putalpha(image.convert("L"))
    frames = [image.rotate(90 * turn) for turn in (1, 2)]
    made_now = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = made_now[:24] + bytes(12) + made_now[36:]  # without the time at which it was made
    return [
        data,
        _saved(image, "JPEG", quality=rng.randrange(5, 100)),
        _saved(image, "JPEG", progressive=True, exif=exif, icc_profile=profile),
        _saved(image, "JPEG", restart_marker_blocks=2, subsampling=0),
        _saved(image.convert("CMYK"), "JPEG"),
        _saved(image.convert("L"), "JPEG"),
        _saved(image, "PNG", exif=exif),
        _saved(rgba, "PNG"),
        _saved(image.quantize(rng.randrange(2, 256)), "PNG", transparency=0),
        _saved(image.convert("1"), "PNG"),
        _saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8), "PNG"),
        _saved(image.convert("LA"), "PNG"),
        _png48(rng),
        _saved(image, "PNG", save_all=True, append_images=frames, duration=10),
        _saved(image, "WEBP", quality=rng.randrange(100), exif=exif),
        _saved(rgba, "WEBP", lossless=True),
        _saved(rgba, "WEBP", save_all=True, append_images=[frame.convert("RGBA") for frame in frames], duration=10),
    ]


def _saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _png48(rng: random.Random) -> bytes:
    """16 bits a channel, which Pillow reads but does not write; 8 x 8 pixels."""
    rows = b"".join(b"\0" + rng.randbytes(8 * 6) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
