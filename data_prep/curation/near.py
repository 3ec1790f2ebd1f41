"""Pairs of perceptual hashes within a few bits of each other, found exactly, in time about n log n and memory in proportion.

Two 64-bit hashes that differ in at most d bits differ in at most d of B blocks, so they agree on at least B - d of them.
There is a table for each choice of B - d blocks, sorted by what the hashes hold there; only hashes with an equal key are
compared.  More blocks make longer keys, so fewer are compared for nothing, but more tables: B grows with n (for d = 4: 15
tables of 21 bits up to ten million hashes, 35 of 27 bits beyond).  Where more than a few hundred meet at one key, chance or
somebody made them so: they are told apart by tables of the bits that are no part of that key, and so on.

Shapes: N and M hashes.  A concept is a number; -1 is unknown and compatible with all, others with themselves.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

HASH_BITS = 64
UNKNOWN = -1
_ALL_BITS = np.uint64((1 << HASH_BITS) - 1)
_PAIRS_AT_ONCE = 1 << 22
_PAIRS_AS_LISTS = 1 << 16
_FIRST_PART = 1 << 12
_PAIRS_HELD = 1 << 20
"""Near pairs of one part that are known at once, of 56 bytes each; a part that has more is halved."""
_CROWDED = 512
"""Hashes on both sides of one key: tables of their other bits cost less than comparing more than these."""
_PAYS = 4
"""Times by which such tables must reduce the comparisons."""
_CONCEPT_MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd number: concepts that share a key only cost a comparison


class Hashes(NamedTuple):
    values: np.ndarray
    """(N,) uint64."""
    concepts: np.ndarray
    """(N,) int64."""

    def take(self, places: np.ndarray) -> "Hashes":
        return Hashes(self.values[places], self.concepts[places])


class Nearest(NamedTuple):
    place: np.ndarray
    """(N,) int64; -1 where there is none."""
    distance: np.ndarray
    """(N,) int64 bits; -1 where there is none."""


def greedy_duplicates(hashes: Hashes, *, max_distance: int) -> Nearest:
    """For each hash the first kept one before it within `max_distance` bits and of a compatible concept; kept ones have none.

    A hash is compared with kept ones only, so a chain of small steps does not swallow different pictures.  Equal hashes of one
    concept have one answer and are asked about once.  The others are gone through in parts that double in length: each is
    compared with what is kept of those before, then with itself, so that dense clusters never give all their pairs.
    """
    order = np.lexsort((hashes.concepts, hashes.values))  # stable: equal ones stay in their order
    values, concepts = hashes.values[order], hashes.concepts[order]
    starts = np.r_[True, (values[1:] != values[:-1]) | (concepts[1:] != concepts[:-1])] if len(order) else np.zeros(0, bool)
    first_of = np.empty(len(order), np.int64)
    first_of[order] = order[starts][np.cumsum(starts) - 1]
    asked = np.flatnonzero(first_of == np.arange(len(order)))
    place = np.full(len(order), -1, np.int64)
    place[asked] = _greedy(hashes.take(asked), max_distance)
    place[asked] = np.where(place[asked] >= 0, asked[place[asked]], -1)
    repeats = np.flatnonzero(first_of != np.arange(len(order)))
    first = first_of[repeats]
    place[repeats] = np.where(
        place[first] >= 0, place[first], first
    )  # what swallowed the first swallows all, or it does itself
    distance = np.where(place >= 0, np.bitwise_count(hashes.values ^ hashes.values[place]), -1).astype(np.int64)
    return Nearest(place, distance)


def nearest(hashes: Hashes, among: Hashes, *, max_distance: int) -> Nearest:
    """For each hash the nearest of others within `max_distance` bits; the first of equally near ones."""
    none = (max_distance + 1) * (len(among.values) + 1)
    best = np.full(len(hashes.values), none, np.int64)
    for start in range(0, len(best), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        for left, right, bits in _pairs_between(Hashes(hashes.values[part], hashes.concepts[part]), among, max_distance):
            np.minimum.at(best, left + start, bits * len(among.values) + right)
    found = best < none
    size = max(len(among.values), 1)
    return Nearest(np.where(found, best % size, -1), np.where(found, best // size, -1))


def _greedy(hashes: Hashes, max_distance: int) -> np.ndarray:
    """(N,) place of the first kept one near each, -1 for the kept ones; all hashes differ, or their concepts do."""
    count = len(hashes.values)
    found = np.full(count, -1, np.int64)
    if max_distance == 0 and not ((hashes.concepts == UNKNOWN).any() and (hashes.concepts != UNKNOWN).any()):
        return found
    start, size = 0, _FIRST_PART
    while start < count:
        places = np.arange(start, min(start + size, count))
        _decide(
            hashes, found, _without_copies(hashes, found, places, np.flatnonzero(found[:start] < 0), max_distance), max_distance
        )
        start, size = start + size, 2 * size
    return found


def _without_copies(hashes: Hashes, found: np.ndarray, places: np.ndarray, kept: np.ndarray, max_distance: int) -> np.ndarray:
    """Note in `found` which of `places` are near kept ones before them; the places of the others."""
    best = np.full(len(places), len(found), np.int64)
    for left, right, _ in _pairs_between(hashes.take(places), hashes.take(kept), max_distance):
        np.minimum.at(best, left, kept[right])
    found[places] = np.where(best < len(found), best, -1)
    return places[best == len(found)]


def _decide(hashes: Hashes, found: np.ndarray, places: np.ndarray, max_distance: int) -> None:
    """Note in `found` which of `places`, in their order and near no kept one before them, are near each other."""
    if (pairs := _pairs_within(hashes.take(places), max_distance)) is None:
        first, second = places[: len(places) // 2], places[len(places) // 2 :]
        _decide(hashes, found, first, max_distance)
        kept = first[found[first] < 0]
        _decide(hashes, found, _without_copies(hashes, found, second, kept, max_distance), max_distance)
        return
    earlier, later = pairs
    # by the later and then the earlier one: when a pair is met, its earlier one is decided
    order = np.lexsort((earlier, later))
    for start in range(0, len(order), _PAIRS_AS_LISTS):
        some = order[start : start + _PAIRS_AS_LISTS]
        for one, other in zip(places[earlier[some]].tolist(), places[later[some]].tolist(), strict=True):
            if found[one] < 0 and found[other] < 0:
                found[other] = one


def _pairs_within(hashes: Hashes, max_distance: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Places of the earlier and of the later one of all near and compatible pairs; None where they are too many to hold."""
    earlier, later = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    count = 0
    for left, right, _ in _pairs_between(hashes, hashes, max_distance):
        once = left < right
        count += int(once.sum())
        if count > _PAIRS_HELD:
            return None
        earlier.append(left[once])
        later.append(right[once])
    return np.concatenate(earlier), np.concatenate(later)


def _pairs_between(ones: Hashes, others: Hashes, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places in `ones` and `others` of hashes that are near and compatible, and their distance; each pair once."""
    masks = _masks(max_distance, max(len(ones.values), len(others.values)))
    loose, known = (
        [np.flatnonzero((side.concepts == UNKNOWN) == is_loose) for side in (ones, others)] for is_loose in (True, False)
    )
    for number, mask in enumerate(masks):
        keys = [side.values & mask for side in (ones, others)]
        mixed = [
            key ^ ((side.concepts + 1).astype(np.uint64) * _CONCEPT_MIX) for key, side in zip(keys, (ones, others), strict=True)
        ]
        for left, right in _near_at_keys(ones.values, others.values, mixed[0], mixed[1], ~mask, max_distance):
            same = ones.concepts[left] == others.concepts[right]
            yield from _first_met(ones.values, others.values, left[same], right[same], masks[:number])
        for mine, theirs in ((loose[0], known[1]), (known[0], loose[1])):
            values, keys_of = (ones.values[mine], others.values[theirs]), (keys[0][mine], keys[1][theirs])
            for left, right in _near_at_keys(*values, *keys_of, ~mask, max_distance):
                yield from _first_met(ones.values, others.values, mine[left], theirs[right], masks[:number])


def _first_met(
    ones: np.ndarray, others: np.ndarray, left: np.ndarray, right: np.ndarray, masks: list[np.uint64]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs that agree on none of the masks before, and their distance."""
    differ = ones[left] ^ others[right]
    new = np.ones(len(left), bool)
    for mask in masks:
        new &= differ & mask != 0
    if new.any():
        yield left[new], right[new], np.bitwise_count(differ[new]).astype(np.int64)


def _near_at_keys(
    ones: np.ndarray, others: np.ndarray, keys: np.ndarray, other_keys: np.ndarray, free: np.uint64, max_distance: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of near hashes with equal keys, each pair once, a bounded number at once.

    Args:
        free: bits that are no part of the keys.
    """
    if not len(ones) or not len(others):
        return
    order = np.argsort(other_keys)
    sorted_keys = other_keys[order]
    by_key = np.argsort(keys)  # looked up in order, they find their neighbours in the cache
    asked = keys[by_key]
    low = np.searchsorted(sorted_keys, asked, "left")
    count = np.searchsorted(sorted_keys, asked, "right") - low
    if (count > _CROWDED).any():
        starts = np.flatnonzero(np.r_[True, asked[1:] != asked[:-1]])
        sizes = np.diff(np.r_[starts, len(asked)])
        crowded = (sizes > _CROWDED) & (count[starts] > _CROWDED)
        for start, size in zip(starts[crowded].tolist(), sizes[crowded].tolist(), strict=True):
            left, right = by_key[start : start + size], order[low[start] : low[start] + count[start]]
            masks = _paying_masks(max_distance, max(len(left), len(right)), free)
            if masks and not _often_near(ones[left], others[right], max_distance):
                count[start : start + size] = 0
                yield from _near_in_crowd(ones, others, left, right, masks, free, max_distance)
    hits = np.flatnonzero(count)
    ends = np.cumsum(count[hits])
    start = 0
    while start < len(hits):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")), start + 1)
        some = hits[start:stop]
        left = np.repeat(some, count[some])
        within = np.arange(len(left)) - np.repeat(np.cumsum(count[some]) - count[some], count[some])
        left, right = by_key[left], order[low[left] + within]
        near = np.bitwise_count(ones[left] ^ others[right]) <= max_distance
        yield left[near], right[near]
        start = stop


def _near_in_crowd(
    ones: np.ndarray,
    others: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    masks: list[np.uint64],
    free: np.uint64,
    max_distance: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Near ones of `left` and `right`, which agree on all but the free bits, by the tables of these."""
    mine, theirs = ones[left], others[right]
    for number, mask in enumerate(masks):
        for one, other in _near_at_keys(mine, theirs, mine & mask, theirs & mask, free & ~mask, max_distance):
            for first, second, _ in _first_met(mine, theirs, one, other, masks[:number]):
                yield left[first], right[second]


def _often_near(ones: np.ndarray, others: np.ndarray, max_distance: int) -> bool:
    """Whether few comparisons would be spared, as most find a pair; by a few of them."""
    some, others_of_some = (side[:: max(len(side) // 64, 1)] for side in (ones, others))
    return bool((np.bitwise_count(some[:, None] ^ others_of_some) <= max_distance).mean() > 1 / 8)


def _paying_masks(max_distance: int, count: int, free: np.uint64) -> list[np.uint64]:
    """Of tables of the free bits; none where they would not reduce the comparisons by much."""
    masks = _masks(max_distance, count, free)
    shortest = min(int(mask).bit_count() for mask in masks)
    return masks if len(masks) * _PAYS <= 1 << shortest else []


def _masks(max_distance: int, count: int, free: np.uint64 = _ALL_BITS) -> list[np.uint64]:
    """Which of the free bits make the key of each table."""
    bits = [1 << bit for bit in range(HASH_BITS) if int(free) >> bit & 1]
    blocks = max_distance + 2 if max_distance else 1
    # a key should tell nearly as many hashes apart as there are; with many bits of distance there would be too many tables
    while blocks < max_distance + 4 and len(bits) * (blocks - max_distance) / blocks < np.log2(max(count, 2)) - 2:
        blocks += 1
    edges = [len(bits) * block // blocks for block in range(blocks + 1)]
    block_masks = [sum(bits[low:high]) for low, high in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(block_masks, blocks - max_distance)]
