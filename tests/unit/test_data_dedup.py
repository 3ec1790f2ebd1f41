"""Perceptual hashes: copies hash alike, and shapes on transparent ground are seen."""

import numpy as np

from data_prep.curation.dedup import perceptual_hash
from infra import images
from tests.unit.data_helpers import picture


def test_recompression_and_scaling_hash_alike_and_other_pictures_do_not() -> None:
    def hashed(data: bytes) -> int:
        return perceptual_hash(images.decode(data)) or 0

    original = hashed(picture(1, width=96, height=96, image_format="PNG"))
    copy = hashed(picture(1, width=60, height=60, image_format="JPEG"))
    assert (original ^ copy).bit_count() <= 4
    assert (original ^ hashed(picture(2))).bit_count() > 16


def shape(colour: int, *, round_one: bool) -> np.ndarray:
    """A disc or a bar of one colour on transparent ground."""
    y, x = np.mgrid[:64, :64]
    inside = (x - 32) ** 2 + (y - 32) ** 2 < 400 if round_one else abs(x - 32) < 6
    pixels = np.full((64, 64, 4), colour, dtype=np.uint8)
    pixels[:, :, 3] = np.where(inside, 255, 0)
    return pixels


def test_white_shapes_on_transparent_ground_are_told_apart() -> None:
    disc, bar = perceptual_hash(shape(255, round_one=True)), perceptual_hash(shape(255, round_one=False))
    assert disc is not None
    assert bar is not None
    assert (disc ^ bar).bit_count() > 4
    assert disc == perceptual_hash(shape(255, round_one=True))


def test_a_picture_of_one_colour_has_no_hash() -> None:
    assert perceptual_hash(np.full((64, 64, 3), 200, dtype=np.uint8)) is None
