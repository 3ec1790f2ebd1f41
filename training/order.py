"""The order of samples: a pure function of (seed, epoch, position), whatever the number of ranks and loader workers.

The stream of positions 0, 1, 2, ... never ends: position p lies in epoch p // N at place p % N, and every epoch holds every
sample exactly once.  Batch k of size B is positions [k B, (k + 1) B), so resuming at batch k needs no skipping.

Locality is kept: blocks of neighbouring samples are shuffled, then samples within windows of several blocks.  N samples in all.
"""

from functools import lru_cache

import numpy as np

BLOCK = 64
"""Neighbouring samples of a shard that stay near each other."""
WINDOW = 64 * BLOCK
"""Samples that are mixed with each other: what a worker touches within a short time."""


@lru_cache(maxsize=2)  # a batch lies in two epochs at most
def epoch_order(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """(N,) int64: which sample stands at each place of an epoch."""
    rng = np.random.default_rng((seed, 2, epoch))
    starts = np.arange(0, num_samples, BLOCK)
    rng.shuffle(starts)
    order = (starts[:, None] + np.arange(BLOCK)).ravel()
    order = order[order < num_samples]
    for start in range(0, num_samples, WINDOW):
        rng.shuffle(order[start : start + WINDOW])
    return order


def sample_at(position: int, num_samples: int, *, seed: int) -> int:
    """Which sample stands at a position of the endless stream."""
    epoch, place = divmod(position, num_samples)
    return int(epoch_order(num_samples, seed=seed, epoch=epoch)[place])


def rank_positions(batch_number: int, contrastive_batch_size: int, *, rank: int, world_size: int) -> range:
    """Positions of one rank's share of a contrastive batch; the ranks' shares follow each other in rank order."""
    local = contrastive_batch_size // world_size
    start = batch_number * contrastive_batch_size + rank * local
    return range(start, start + local)
