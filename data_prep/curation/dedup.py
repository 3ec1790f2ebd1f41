"""Duplicates: the same bytes, or pictures that look the same to a perceptual hash.  The first of several is kept."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydantic import Field

from infra import images
from infra.config import StrictModel

DIGEST_BYTES = 32
_WHITE = (255, 255, 255)
_FLAT_RANGE = 8  # grey levels; below it a hash says nothing about what is shown
_ROWS_AT_ONCE = 256  # the mean over channels is eight times as large as the picture


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
    if _grey_range(flat) < _FLAT_RANGE:
        if pixels.shape[2] == 3 or np.ptp(pixels[:, :, 3]) < _FLAT_RANGE:
            return None
        flat = np.repeat(pixels[:, :, 3:], 3, axis=2)
    return int(str(imagehash.phash(Image.fromarray(np.ascontiguousarray(flat)))), 16)


def _grey_range(pixels: np.ndarray) -> float:
    """Of the mean over the channels."""
    low, high = 255.0, 0.0
    for row in range(0, len(pixels), _ROWS_AT_ONCE):
        grey = pixels[row : row + _ROWS_AT_ONCE].mean(axis=2)
        low, high = min(low, float(grey.min())), max(high, float(grey.max()))
    return high - low


def digests_of(hex_digests: Sequence[str | None]) -> np.ndarray:
    """(N, 32) uint8 of hex SHA-256; zeros for None."""
    data = bytes.fromhex("".join(value or "00" * DIGEST_BYTES for value in hex_digests))
    return np.frombuffer(data, np.uint8).reshape(-1, DIGEST_BYTES)


def first_of_equal(digests: np.ndarray) -> np.ndarray:
    """(N,) int64: for each of (N, 32) uint8 the place of the first one equal to it, -1 for the first itself."""
    order, starts = _runs(digests)
    first = np.repeat(order[starts], np.diff(np.r_[starts, len(order)]))
    found = np.full(len(order), -1, np.int64)
    found[order] = np.where(first == order, -1, first)
    return found


def first_places(digests: np.ndarray, *, among: np.ndarray) -> np.ndarray:
    """(N,) int64: for each of (N, 32) uint8 the place of the first one equal to it in (M, 32), -1 where there is none."""
    first = first_of_equal(np.concatenate([among, digests]))
    found = first[len(among) :]
    return np.where((found >= 0) & (found < len(among)), found, -1)


def _runs(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order in which equal digests follow each other, earlier ones first, and where each run starts."""
    words = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)  # (N, 4)
    order = np.argsort(words[:, 0], kind="stable")
    equal = (words[order][1:] == words[order][:-1]).all(axis=1)
    if ((words[order][1:, 0] == words[order][:-1, 0]) & ~equal).any():  # two that share 64 bits were made on purpose
        order = np.lexsort(words.T)
        equal = (words[order][1:] == words[order][:-1]).all(axis=1)
    return order, np.flatnonzero(np.r_[True, ~equal][: len(order)])
