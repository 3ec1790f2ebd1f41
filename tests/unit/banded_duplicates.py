"""The simple search for near duplicates, one hash after the other: what the fast one must agree with."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

HASH_BITS = 64


def near_duplicates(
    hashes: Sequence[int], *, max_distance: int, concepts: Sequence[str | None] | None = None
) -> list[int | None]:
    """For each entry the place of the first kept one within `max_distance` bits, or None when it is kept itself."""
    buckets: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(max_distance + 1)]
    found: list[int | None] = []
    for place, value in enumerate(hashes):
        bands = _bands(value, max_distance + 1)
        near = {other for bucket, band in zip(buckets, bands, strict=True) for other in bucket.get(band, ())}
        match = min((o for o in near if _alike(hashes, concepts, place, o, max_distance)), default=None)
        if match is None:
            for bucket, band in zip(buckets, bands, strict=True):
                bucket[band].append(place)
        found.append(match)
    return found


def _alike(hashes: Sequence[int], concepts: Sequence[str | None] | None, place: int, other: int, max_distance: int) -> bool:
    if (hashes[place] ^ hashes[other]).bit_count() > max_distance:
        return False
    return concepts is None or None in (concepts[place], concepts[other]) or concepts[place] == concepts[other]


def _bands(value: int, count: int) -> list[int]:
    edges = [HASH_BITS * band // count for band in range(count + 1)]
    return [(value >> low) & ((1 << (high - low)) - 1) for low, high in pairwise(edges)]
