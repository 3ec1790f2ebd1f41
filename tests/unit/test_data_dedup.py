"""Duplicates: the banded search finds what all pairs would, and the hash sees drawings on transparent ground."""

import random

import numpy as np
import pytest

from data_prep.dedup import exact_duplicates, near_duplicates, perceptual_hash
from infra import images
from tests.unit.data_helpers import picture


def by_all_pairs(hashes: list[int | None], max_distance: int) -> list[int | None]:
    """The same rule, obviously right."""
    found: list[int | None] = []
    for place, value in enumerate(hashes):
        kept = [o for o in range(place) if found[o] is None and hashes[o] is not None]
        near = [o for o in kept if value is not None and (value ^ (hashes[o] or 0)).bit_count() <= max_distance]
        found.append(min(near, default=None))
    return found


@pytest.mark.parametrize("max_distance", [0, 1, 4, 7, 16])
def test_bands_find_what_all_pairs_find(max_distance: int) -> None:
    rng = random.Random(max_distance)
    centres = [rng.getrandbits(64) for _ in range(20)]
    hashes: list[int | None] = [None]
    for _ in range(300):
        value = rng.choice(centres)
        for bit in rng.sample(range(64), rng.randrange(0, 2 * max_distance + 2)):
            value ^= 1 << bit
        hashes.append(value)
    expected = by_all_pairs(hashes, max_distance)
    assert near_duplicates(hashes, max_distance=max_distance) == expected
    assert any(place is not None for place in expected)


def test_the_first_is_kept() -> None:
    assert exact_duplicates(["a", "b", "a", "c", "b", "a"]) == [None, None, 0, None, 1, 0]


def test_two_known_concepts_are_no_duplicates_of_each_other() -> None:
    found = near_duplicates([5, 5, 5, 5], max_distance=0, concepts=["red", "blue", "red", None])
    assert found == [None, None, 0, 0]


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
    assert near_duplicates([None, None], max_distance=4) == [None, None]
