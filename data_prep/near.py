"""Pairs of perceptual hashes within a few bits of each other, found exactly, in memory and time about n log n.

Two 64-bit hashes that differ in at most d bits differ in at most d of B blocks, so they agree on at least B - d of them.
There is a table for each choice of B - d blocks, sorted by what the hashes hold there; only hashes with an equal key are
compared.  More blocks make longer keys, so fewer are compared for nothing, but more tables: B grows with n (for d = 4: 15
tables of 21 bits up to ten million hashes, 35 of 27 bits beyond).

Shapes: N and M hashes.  A concept is a number; -1 is unknown and compatible with all, others with themselves.
"""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

HASH_BITS = 64
UNKNOWN = -1
_PAIRS_AT_ONCE = 1 << 22
_FIRST_PART = 1 << 12
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
        kept = np.flatnonzero(found[:start] < 0)
        best = np.full(len(places), count, np.int64)
        for left, right, _ in _pairs_between(hashes.take(places), hashes.take(kept), max_distance):
            np.minimum.at(best, left, kept[right])
        found[places] = np.where(best < count, best, -1)
        open_ones = places[best == count]
        pairs = [
            (open_ones[np.minimum(left, right)], open_ones[np.maximum(left, right)])
            for left, right, _ in _pairs_within(hashes.take(open_ones), max_distance)
        ]
        if pairs:
            earlier, later = (np.concatenate(side) for side in zip(*pairs, strict=True))
            _decide(found, earlier, later)
        start, size = start + size, 2 * size
    return found


def _decide(found: np.ndarray, earlier: np.ndarray, later: np.ndarray) -> None:
    """Go through pairs by their later and then their earlier one: when a pair is met, its earlier one is decided."""
    order = np.lexsort((earlier, later))
    for one, other in zip(earlier[order].tolist(), later[order].tolist(), strict=True):
        if found[one] < 0 and found[other] < 0:
            found[other] = one


def _pairs_within(hashes: Hashes, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for left, right, bits in _pairs_between(hashes, hashes, max_distance):
        once = left < right
        yield left[once], right[once], bits[once]


def _pairs_between(ones: Hashes, others: Hashes, max_distance: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places in `ones` and `others` of hashes that are near and compatible, and their distance; a pair may come repeatedly."""
    if not len(ones.values) or not len(others.values):
        return
    loose_ones, loose_others = (np.flatnonzero(side.concepts == UNKNOWN) for side in (ones, others))
    for mask in _masks(max_distance, max(len(ones.values), len(others.values))):
        keys = [side.values & mask for side in (ones, others)]
        mixed = [
            key ^ ((side.concepts + 1).astype(np.uint64) * _CONCEPT_MIX) for key, side in zip(keys, (ones, others), strict=True)
        ]
        joins = [_join(*mixed)]
        if len(loose_ones) < len(ones.values) or len(loose_others) < len(others.values):  # concepts are known at all
            joins += [
                ((loose_ones[left], right) for left, right in _join(keys[0][loose_ones], keys[1])),
                ((left, loose_others[right]) for left, right in _join(keys[0], keys[1][loose_others])),
            ]
        for join in joins:
            for left, right in join:
                bits = np.bitwise_count(ones.values[left] ^ others.values[right]).astype(np.int64)
                concepts = ones.concepts[left], others.concepts[right]
                near = (bits <= max_distance) & (
                    (concepts[0] == concepts[1]) | (concepts[0] == UNKNOWN) | (concepts[1] == UNKNOWN)
                )
                if near.any():
                    yield left[near], right[near], bits[near]


def _join(ones: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of equal keys, a bounded number at once."""
    if not len(ones) or not len(others):
        return
    order = np.argsort(others)
    sorted_keys = others[order]
    by_key = np.argsort(ones)  # looked up in order, they find their neighbours in the cache
    low = np.searchsorted(sorted_keys, ones[by_key], "left")
    count = np.searchsorted(sorted_keys, ones[by_key], "right") - low
    hits = np.flatnonzero(count)
    ends = np.cumsum(count[hits])
    start = 0
    while start < len(hits):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")), start + 1)
        some = hits[start:stop]
        left = np.repeat(some, count[some])
        within = np.arange(len(left)) - np.repeat(np.cumsum(count[some]) - count[some], count[some])
        yield by_key[left], order[low[left] + within]
        start = stop


def _masks(max_distance: int, count: int) -> list[np.uint64]:
    """Which bits make the key of each table."""
    blocks = max_distance + 2 if max_distance else 1
    # a key should tell nearly as many hashes apart as there are; with many bits of distance there would be too many tables
    while blocks < max_distance + 4 and HASH_BITS * (blocks - max_distance) / blocks < np.log2(max(count, 2)) - 2:
        blocks += 1
    edges = [HASH_BITS * block // blocks for block in range(blocks + 1)]
    block_masks = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(block_masks, blocks - max_distance)]
