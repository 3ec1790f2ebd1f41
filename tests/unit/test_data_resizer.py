"""Our resizer beside img2dataset's: the same bytes, sizes and errors for every kind of picture."""

import io
import os
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}  # what img2dataset imports would phone home

from img2dataset.resizer import Resizer as Img2datasetResizer

from data_prep.resizer import Resizer, store_as_received

SIDE = 64


def pixels(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, size=shape, dtype=dtype)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def upright_and_turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(pixels(90, 200, 3)), "JPEG", exif=exif)


def pictures() -> Iterator[tuple[str, bytes]]:
    for number, (height, width) in enumerate([(200, 300), (301, 107), (65, 65), (64, 64), (64, 900), (63, 500), (129, 1001)]):
        image = Image.fromarray(pixels(height, width, 3, seed=number))
        for image_format in ("JPEG", "PNG", "WEBP"):
            yield f"{image_format} {width} x {height}", encoded(image, image_format)
    for number in range(20):
        height, width = np.random.default_rng(number).integers(2, 400, size=2)
        yield f"JPEG number {number}", encoded(Image.fromarray(pixels(height, width, 3, seed=number)), "JPEG", quality=88)
    for name, shape in {"tiny": (1, 1, 3), "wide": (1, 3000, 3), "high": (3000, 1, 3), "thin": (65, 4001, 3)}.items():
        yield name, encoded(Image.fromarray(pixels(*shape)), "PNG")
    for height, width in [(150, 220), (40, 30)]:
        rgba = Image.fromarray(pixels(height, width, 4), "RGBA")
        grey = Image.fromarray(pixels(height, width))
        yield f"grey JPEG {width}", encoded(grey, "JPEG")
        yield f"grey PNG {width}", encoded(grey, "PNG")
        yield f"grey PNG with alpha {width}", encoded(rgba.convert("LA"), "PNG")
        yield f"16-bit PNG {width}", encoded(Image.fromarray(pixels(height, width, dtype=np.uint16)), "PNG")
        yield f"RGBA PNG {width}", encoded(rgba, "PNG")
        yield f"RGBA WebP {width}", encoded(rgba, "WEBP", lossless=True)
        yield f"palette {width}", encoded(rgba.convert("RGB").convert("P"), "PNG")
        yield f"palette with transparency {width}", encoded(rgba.convert("RGB").convert("P"), "PNG", transparency=3)
        yield f"one bit {width}", encoded(grey.convert("1"), "PNG")
        yield f"CMYK {width}", encoded(rgba.convert("RGB").convert("CMYK"), "JPEG")
        yield f"progressive {width}", encoded(rgba.convert("RGB"), "JPEG", progressive=True)
    yield "turned", upright_and_turned()
    whole = encoded(Image.fromarray(pixels(200, 300, 3)), "JPEG")
    for name, data in {"JPEG": whole, "PNG": encoded(Image.fromarray(pixels(200, 300, 3)), "PNG")}.items():
        yield f"half a {name}", data[: len(data) // 2]
        yield f"header of a {name}", data[:100]
        yield f"damaged {name}", data[:600] + bytes(200) + data[800:]
    yield "nothing", b""
    yield "text", b"<html>"


PICTURES = dict(pictures())


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_resized_to_the_bytes_that_img2dataset_makes(name: str) -> None:
    theirs = Img2datasetResizer(image_size=SIDE, resize_mode="keep_ratio", resize_only_if_bigger=True)
    assert Resizer(SIDE)(io.BytesIO(PICTURES[name])) == theirs(io.BytesIO(PICTURES[name]))


def test_the_pictures_of_this_test_are_of_every_kind() -> None:
    errors = [Resizer(SIDE)(io.BytesIO(data))[-1] for data in PICTURES.values()]
    assert errors.count(None) > 50
    assert errors.count("Image decoding error") >= 3


def test_a_picture_is_stored_as_received_as_img2dataset_does() -> None:
    theirs = Img2datasetResizer(image_size=SIDE, resize_mode="no", resize_only_if_bigger=True, disable_all_reencoding=True)
    for data in PICTURES.values():
        assert store_as_received(io.BytesIO(data)) == theirs(io.BytesIO(data))


def test_a_damaged_picture_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for data in PICTURES.values():
        Resizer(SIDE)(io.BytesIO(data))
    os.write(2, b"still there")
    assert capfd.readouterr() == ("", "still there")
