"""The order of samples: a pure function of (seed, position), whatever the number of ranks and loader workers.

The stream of positions 0, 1, 2, ... never ends.  Batch k of size B is positions [k B, (k + 1) B), so resuming at batch k needs
no skipping.  `EpochOrder` is the default: position p lies in epoch p // N at place p % N, and every epoch holds every sample
exactly once.  `WeightedOrder` draws from sources in given shares instead.

Locality is kept: blocks of neighbouring samples, which never straddle two shards, are shuffled, then samples within windows of
`WINDOW_BLOCKS` blocks.  Only the order of the blocks is held: 8 bytes for every 64 samples, 12 MB for 100 million; a look-up
costs the shuffle of its window, wherever it is.

Shapes: N samples, M blocks, S shards, B positions.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from infra.errors import BadInputError

BLOCK = 64
"""At most so many neighbouring samples of a shard stay near each other; a remote shard is read in ranges of one block."""
WINDOW_BLOCKS = 64
"""Blocks whose samples are mixed with each other: what is touched within a short time."""
ROUND = 4096
"""Positions within which a weighted stream holds its shares exactly."""

# what a random generator is for, beside the seed: no two uses share numbers
_EPOCH, _WINDOW, _ROUND = 2, 6, 7


class SampleOrder(Protocol):
    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """(B,) int64 positions of the endless stream -> (B,) int64, the sample that stands at each."""
        ...


class EpochOrder:
    """Every epoch holds every sample exactly once."""

    def __init__(self, shard_sizes: Sequence[int] | np.ndarray, *, seed: int, stream: int = 0) -> None:
        """Args:
        shard_sizes: (S,) samples of each shard.
        stream: tells orders of one seed apart.
        """
        self.num_samples = int(np.sum(shard_sizes))
        self._bounds = block_bounds(shard_sizes)
        self._key = (seed, stream)
        # a batch lies in two epochs at most; with the windows a batch touches, a few thousand numbers each
        self._epoch = lru_cache(maxsize=2)(self._shuffled_blocks)
        self._window = lru_cache(maxsize=16)(self._shuffled_window)

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(positions, self.num_samples)
        samples = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            starts = self._epoch(epoch).window_starts
            windows = np.searchsorted(starts, places, side="right") - 1
            for window in np.unique(windows[epochs == epoch]).tolist():
                chosen = (epochs == epoch) & (windows == window)
                samples[chosen] = self._window(epoch, window)[places[chosen] - starts[window]]
        return samples

    def _shuffled_blocks(self, epoch: int) -> "_Epoch":
        blocks = np.random.default_rng((*self._key, _EPOCH, epoch)).permutation(len(self._bounds) - 1)
        sizes = np.diff(self._bounds)[blocks]
        return _Epoch(blocks, np.concatenate([[0], np.cumsum(sizes)])[:-1:WINDOW_BLOCKS])

    def _shuffled_window(self, epoch: int, window: int) -> np.ndarray:
        blocks = self._epoch(epoch).blocks[window * WINDOW_BLOCKS : (window + 1) * WINDOW_BLOCKS]
        samples = np.concatenate([np.arange(self._bounds[block], self._bounds[block + 1]) for block in blocks])
        np.random.default_rng((*self._key, _WINDOW, epoch, window)).shuffle(samples)
        return samples


class _Epoch(NamedTuple):
    blocks: np.ndarray
    """(M,) order of the blocks."""
    window_starts: np.ndarray
    """Place in the epoch at which each window starts."""


class WeightedOrder:
    """A stream that holds each source in its share; each source goes through epochs of its own, every sample once in each.

    Shares are exact within every `ROUND` positions (so a weight counts to 1 / 4,096, and a named source has at least that).
    Within a round the sources are shuffled.
    """

    def __init__(
        self, sources: Sequence[np.ndarray], shard_sizes: Sequence[int] | np.ndarray, *, weights: Sequence[float], seed: int
    ) -> None:
        """Args:
        sources: for each source its samples, increasing; none is empty.
        shard_sizes: (S,) samples of each shard.
        weights: of each source, positive; only their ratios matter.
        """
        self._sources = sources
        self._shares = round_shares(weights)
        self._seed = seed
        shard_ends = np.cumsum(shard_sizes)
        self._orders = [
            EpochOrder(_counts_per_shard(samples, shard_ends), seed=seed, stream=number)
            for number, samples in enumerate(sources, start=1)
        ]
        self._round = lru_cache(maxsize=2)(self._shuffled_round)

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        rounds, slots = np.divmod(positions, ROUND)
        samples = np.empty(len(positions), dtype=np.int64)
        for number in np.unique(rounds).tolist():
            source_of_slot, turn_of_slot = self._round(number)
            here = np.flatnonzero(rounds == number)
            source_here, turn_here = source_of_slot[slots[here]], turn_of_slot[slots[here]]
            for source in np.unique(source_here).tolist():
                chosen = source_here == source
                own_positions = number * self._shares[source] + turn_here[chosen]
                samples[here[chosen]] = self._sources[source][self._orders[source].samples_at(own_positions)]
        return samples

    def _shuffled_round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ROUND,) the source of each slot, and how often that source came before within the round."""
        source_of_slot = np.repeat(np.arange(len(self._shares)), self._shares)
        np.random.default_rng((self._seed, _ROUND, number)).shuffle(source_of_slot)
        turn_of_slot = np.empty(ROUND, dtype=np.int64)
        for source, share in enumerate(self._shares):
            turn_of_slot[source_of_slot == source] = np.arange(share)
        return source_of_slot, turn_of_slot


def block_bounds(shard_sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """(M + 1,) first sample of each block and, last, N.  A shard is cut into blocks of nearly equal size, at most `BLOCK`."""
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    blocks = -(-sizes // BLOCK)  # of each shard
    first_sample, first_block = np.cumsum(sizes) - sizes, np.cumsum(blocks) - blocks
    within = np.arange(blocks.sum()) - np.repeat(first_block, blocks)
    starts = np.repeat(first_sample, blocks) + within * np.repeat(sizes, blocks) // np.repeat(blocks, blocks)
    return np.append(starts, sizes.sum())


def round_shares(weights: Sequence[float]) -> np.ndarray:
    """(sources,) positions of each source in a round: at least one each, `ROUND` in all, nearest to the weights.

    Raises:
        BadInputError: more sources than positions.
    """
    if len(weights) > ROUND:
        raise BadInputError(f"{len(weights):,} sources have a weight, more than the {ROUND:,} that a stream can hold apart")
    ideal = np.asarray(weights, dtype=np.float64) / np.sum(weights) * ROUND
    shares = np.maximum(np.floor(ideal), 1).astype(np.int64)
    while (missing := ROUND - int(shares.sum())) != 0:
        lag = np.where((shares > 1) | (missing > 0), ideal - shares, np.inf)
        shares[np.argmax(lag) if missing > 0 else np.argmin(lag)] += np.sign(missing)
    return shares


def rank_share(
    order: SampleOrder, batch_number: int, *, contrastive_batch_size: int, rank: int, world_size: int
) -> "BatchPlan":
    """One rank's share of a contrastive batch; the ranks' shares follow each other in rank order.

    The batch is handed out by place in the shards: each rank, and so each machine, reads a part of the window of its own
    instead of a little of every block.
    """
    positions = np.arange(batch_number * contrastive_batch_size, (batch_number + 1) * contrastive_batch_size)
    samples = order.samples_at(positions)
    by_place = np.argsort(samples, kind="stable")
    local = contrastive_batch_size // world_size
    own = by_place[rank * local : (rank + 1) * local]
    return BatchPlan(positions[own], samples[own])


class BatchPlan(NamedTuple):
    """What a loader worker is asked for."""

    positions: np.ndarray
    """(B,) int64; everything random about a sample is drawn from its position."""
    samples: np.ndarray
    """(B,) int64, increasing."""


def _counts_per_shard(samples: np.ndarray, shard_ends: np.ndarray) -> np.ndarray:
    counts = np.diff(np.searchsorted(samples, shard_ends, side="left"), prepend=0)
    return counts[counts > 0]
