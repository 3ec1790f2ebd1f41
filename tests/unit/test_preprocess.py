"""The network input against a plain Pillow reference."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from infra.images import ImageError
from tests.unit.model_helpers import picture_bytes
from training.preprocess import PreprocessConfig, centre_square, normalize, preprocess

CONFIG = PreprocessConfig(image_size=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), background=(255, 0, 128))


def reference(data: bytes, config: PreprocessConfig) -> np.ndarray:
    """Pillow alone, step by step."""
    picture = Image.open(io.BytesIO(data))
    if picture.mode == "RGBA":
        ground = Image.new("RGBA", picture.size, (*config.background, 255))
        picture = Image.alpha_composite(ground, picture)
    picture = picture.convert("RGB")
    short = min(picture.size)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    side = config.image_size
    picture = picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
    values = (np.asarray(picture, dtype=np.float64) / 255 - config.mean) / config.std
    return values.transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(24, 24), (64, 48), (49, 64), (7, 5), (1, 1), (300, 2)])
def test_values_are_those_of_pillow(size: tuple[int, int]) -> None:
    data = picture_bytes(*size)
    found = preprocess(data, CONFIG)
    assert found.shape == (3, 24, 24) and found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, reference(data, CONFIG), atol=1e-5)  # the same pixels, float32 against float64


def test_transparency_shows_the_background() -> None:
    data = picture_bytes(40, 30, mode="RGBA")
    one_grey_level = 1 / 255 / 0.2  # the two blends round differently
    np.testing.assert_allclose(preprocess(data, CONFIG), reference(data, CONFIG), atol=one_grey_level + 1e-5)


@pytest.mark.parametrize("encoding", ["JPEG", "WEBP"])
def test_other_formats_give_nearly_the_same_picture(encoding: str) -> None:
    found = preprocess(picture_bytes(40, 30, encoding=encoding), CONFIG)
    assert np.abs(found - preprocess(picture_bytes(40, 30), CONFIG)).mean() < 0.2  # lossy


def test_the_crop_is_central() -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255
    assert (centre_square(pixels, 10) == 255).all()
    assert (centre_square(pixels.transpose(1, 0, 2), 10) == 255).all()


def test_normalize_maps_the_range() -> None:
    config = PreprocessConfig(image_size=2)
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert (normalize(black, config) == -1).all() and (normalize(white, config) == 1).all()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"GIF89a" + data, "not_an_image"),
        (lambda data: data[: len(data) // 2], "truncated"),
    ],
)
def test_what_is_no_picture_is_refused(spoil: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(ImageError) as error:
        preprocess(spoil(picture_bytes(40, 30)), CONFIG)
    assert error.value.reason == reason


def test_too_many_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="40 x 30 pixels, more than the 1,000 allowed"):
        preprocess(picture_bytes(40, 30), CONFIG, max_pixels=1000)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValidationError, match="crop"):
        PreprocessConfig.model_validate({"image_size": 24, "crop": "random"})
