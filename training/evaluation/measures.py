"""Figures from predictions: means with intervals, recall, calibration, and telling known pictures from unknown ones.

Shapes: K arms, S training seeds (models), U units that are resampled (tasks, or pictures of one task), N predictions.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from infra.config import StrictModel

NUM_RESAMPLES = 2000
DRAWN_AT_ONCE = 1 << 22
NUM_BINS = 10
Key = TypeVar("Key")


class Estimate(StrictModel):
    """A mean with its 95 % interval from a bootstrap over tasks, and over seeds where there are several models."""

    mean: float
    low: float
    high: float


class ReliabilityPoint(StrictModel):
    """Predictions of similar `match`."""

    match: float
    """Mean of what was said."""
    right: float
    """Share that was right: equal where `match` is calibrated."""
    count: int


class Calibration(StrictModel):
    """Of the `match` of the predicted name, as a probability that it is right."""

    ece: float
    """Expected calibration error: mean distance of `match` from the share that is right, over bins of equal count."""
    points: tuple[ReliabilityPoint, ...]


def estimates(values: Mapping[Key, np.ndarray], *, seed: int) -> dict[Key, Estimate]:
    """Mean of each arm; all arms are resampled alike.

    Args:
        values: (S, U) of each arm; none give none.
    """
    if not values:
        return {}
    stacked = np.stack(list(values.values()))
    samples = bootstrap_means(stacked, seed=seed)
    return {arm: _estimate(float(found.mean()), sampled) for arm, found, sampled in zip(values, stacked, samples, strict=True)}


def bootstrap_means(values: np.ndarray, *, seed: int) -> np.ndarray:
    """(K, S, U) -> (K, `NUM_RESAMPLES`): means after drawing seeds and units with replacement, the same ones for every arm.

    Drawing from S seeds shows (S - 1) / S of their variance, a third too little with three, so their distances from the mean
    are stretched before by what makes up for it.  Units are many, and what they lack is next to nothing.
    Units with the same values for every arm and seed are drawn as one, in their number: of a million pictures that are right or
    wrong, few patterns are left.
    """
    num_arms, num_seeds, num_units = values.shape
    if num_seeds > 1:
        of_seed = values.mean(axis=2, keepdims=True)
        values = values + (np.sqrt(num_seeds / (num_seeds - 1)) - 1) * (of_seed - of_seed.mean(axis=1, keepdims=True))
    rng = np.random.default_rng((seed, num_units))
    patterns, counts = np.unique(values.reshape(-1, num_units), axis=1, return_counts=True)
    patterns = patterns.reshape(num_arms, num_seeds, -1)
    found = []
    at_once = max(1, DRAWN_AT_ONCE // len(counts))
    for start in range(0, NUM_RESAMPLES, at_once):
        size = min(at_once, NUM_RESAMPLES - start)
        over_units = patterns @ (rng.multinomial(num_units, counts / num_units, size=size) / num_units).T  # (K, S, size)
        of_seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=size) / num_seeds
        found.append((over_units * of_seeds.T).sum(axis=1))
    return np.concatenate(found, axis=1)


def _estimate(mean: float, sampled: np.ndarray) -> Estimate:
    low, high = np.quantile(sampled, [0.025, 0.975])
    # where all values are equal, rounding alone can put the mean outside
    return Estimate(mean=mean, low=min(mean, float(low)), high=max(mean, float(high)))


def recall_of_classes(places: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Share of each class's pictures that was found, for the classes with pictures, in increasing order."""
    counts = np.bincount(targets)
    found = np.bincount(targets, weights=places == targets, minlength=len(counts))
    return found[counts > 0] / counts[counts > 0]


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Probability that a score of `inside` is above one of `outside`; equal ones count half."""
    scores = np.concatenate([inside, outside])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # of equal scores the mean
    above = ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2
    return float(above / (len(inside) * len(outside)))


def calibration(match: np.ndarray, right: np.ndarray) -> Calibration:
    """Args: match, right (N,), the latter 0 or 1."""
    order = np.argsort(match, kind="stable")
    bins = [part for part in np.array_split(order, NUM_BINS) if len(part)]
    points = tuple(
        ReliabilityPoint(match=float(match[part].mean()), right=float(right[part].mean()), count=len(part)) for part in bins
    )
    ece = sum(point.count * abs(point.match - point.right) for point in points) / len(match)
    return Calibration(ece=ece, points=points)
