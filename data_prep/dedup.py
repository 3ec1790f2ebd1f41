"""Duplicates: the same bytes, or pictures that look the same to a perceptual hash.  The first of several is kept.

Perceptual hashes within a distance are found by bands: two 64-bit hashes that differ in at most d bits agree on at least one of
d + 1 bands, so only pictures that share a band are compared.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image
from pydantic import Field

from infra import images
from infra.config import StrictModel

HASH_BITS = 64
_WHITE = (255, 255, 255)
_FLAT_RANGE = 8  # grey levels; below it a hash says nothing about what is shown


class DedupConfig(StrictModel):
    """What counts as a duplicate.  The same bytes always do."""

    max_hamming_distance: int | None = Field(default=4, ge=0, le=16)
    """Bits (of 64) in which perceptual hashes of duplicates may differ; None keeps everything that is not the same bytes."""
    same_concept_only: bool = True
    """Pictures of two different known concepts are no duplicates: drawings of faces or flags hash alike.  One whose concept is
    unknown is compared with all."""


def perceptual_hash(pixels: np.ndarray) -> int | None:
    """DCT hash of a picture, (H, W, 3 or 4) uint8, laid on white; None for one of a single colour.

    A white drawing on transparent ground would vanish on white: its shape, the alpha channel, is hashed instead.
    """
    import imagehash  # here, as configurations are read where nothing is hashed

    flat = images.flatten(pixels, background=_WHITE)
    if np.ptp(flat.mean(axis=2)) < _FLAT_RANGE:
        if pixels.shape[2] == 3 or np.ptp(pixels[:, :, 3]) < _FLAT_RANGE:
            return None
        flat = np.repeat(pixels[:, :, 3:], 3, axis=2)
    return int(str(imagehash.phash(Image.fromarray(np.ascontiguousarray(flat)))), 16)


def exact_duplicates(hashes: Sequence[str]) -> list[int | None]:
    """For each entry the place of the first one equal to it, or None for the first itself."""
    first: dict[str, int] = {}
    places = [first.setdefault(value, place) for place, value in enumerate(hashes)]
    return [None if first_place == place else first_place for place, first_place in enumerate(places)]


def near_duplicates(
    hashes: Sequence[int | None], *, max_distance: int, concepts: Sequence[str | None] | None = None
) -> list[int | None]:
    """For each entry the place of the first kept one within `max_distance` bits, or None when it is kept itself.

    An entry is compared with kept ones only, so a chain of small steps does not swallow different pictures.

    Args:
        hashes: perceptual hashes; None is never a duplicate.
        concepts: where given, entries of two different known concepts are no duplicates.
    """
    buckets: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(max_distance + 1)]
    found: list[int | None] = []
    for place, value in enumerate(hashes):
        match = None
        if value is not None:
            bands = _bands(value, max_distance + 1)
            near = {other for bucket, band in zip(buckets, bands, strict=True) for other in bucket.get(band, ())}
            match = min((o for o in near if _alike(hashes, concepts, place, o, max_distance)), default=None)
            if match is None:
                for bucket, band in zip(buckets, bands, strict=True):
                    bucket[band].append(place)
        found.append(match)
    return found


def _alike(
    hashes: Sequence[int | None], concepts: Sequence[str | None] | None, place: int, other: int, max_distance: int
) -> bool:
    one, two = hashes[place], hashes[other]
    if one is None or two is None or (one ^ two).bit_count() > max_distance:
        return False
    return concepts is None or None in (concepts[place], concepts[other]) or concepts[place] == concepts[other]


def _bands(value: int, count: int) -> list[int]:
    edges = [HASH_BITS * band // count for band in range(count + 1)]
    return [(value >> low) & ((1 << (high - low)) - 1) for low, high in pairwise(edges)]
