"""Which images share parameters in a contrastive batch, and from which names those are generated.

The plan is a pure function of the batch's ids, the seed and the batch's number, so that every rank makes the same one; where
groups are of neighbours in text space, also of the names' features, and so of the weights.
The condition must not give the answer away (with negatives across groups it does, and training collapses to chance), so pairs
count within a group only.  Shapes: N contrastive batch, G groups, C names in a set (padded).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.conditioning_config import ConditioningConfig
from training.neighbours import cut_into_neighbours, similarities
from training.topics import OTHER_SETS, cut_by_topic

MAX_SIZE_RATIO = 8
"""Largest over smallest group of a batch, about."""


@dataclass(frozen=True)
class ConditioningPlan:
    group_index: Tensor
    """(N,) int64, the group of each sample."""
    sets: Tensor
    """(G, C) int64, names of each group as rows of the batch's unique texts; padding repeats the first."""
    mask: Tensor
    """(G, C) bool, True at names."""
    conditioned: Tensor
    """(G,) bool, False where the condition is dropped."""
    learned_delta: Tensor
    """(G,) int64, which learned delta each set should be made of, 0 for none; see training/topics.py."""

    @property
    def num_groups(self) -> int:
        return len(self.sets)


def plan_conditioning(
    config: ConditioningConfig,
    *,
    step: int,
    batch_number: int,
    seed: int,
    name_index: Tensor,
    topic_ids: Tensor,
    name_features: Tensor | None = None,
) -> ConditioningPlan:
    """Cut a contrastive batch into groups and choose their conditioning sets.

    Args:
        step: optimizer step, for `start_step`.
        batch_number: of the contrastive batch since the start of training; with `seed` it fixes every random choice.
        name_index: (N,) int64, the name of each sample as a row of the batch's unique texts.
        topic_ids: (N,) int64.
        name_features: (M, D) unit vectors, the same on every rank, whose rows `name_index` names; for
            `coherence: neighbours` alone.
    """
    rng = np.random.default_rng((seed, 1, batch_number))
    names, topics = name_index.cpu().numpy(), topic_ids.cpu().numpy()
    unconditioned = step < config.start_step
    num_groups = 1 if unconditioned else int(rng.choice(config.groups))
    coherent = bool(rng.random() < config.coherent_share_at(step))
    alike = None  # names that should not meet in a set
    learned_delta = None
    if coherent and config.topics:
        group_index, learned_delta = cut_by_topic(topics, config.topics)
        num_groups = len(learned_delta)
    elif coherent and num_groups > 1 and name_features is not None:
        cosines = similarities(name_features)
        alike = (cosines > config.max_similarity) & ~np.eye(len(cosines), dtype=bool)
        sizes = _group_sizes(len(names), num_groups, rng)
        group_index = cut_into_neighbours(names, cosines, sizes, too_alike=alike, rng=rng)
    else:
        group_index = _cut_into_groups(topics, num_groups, coherent=coherent, rng=rng)
    if learned_delta is None:
        learned_delta = np.full(num_groups, OTHER_SETS)
    conditioned = np.zeros(1, dtype=bool) if unconditioned else rng.random(num_groups) >= config.drop_share
    sets = [np.unique(names[group_index == group]) for group in range(num_groups)]
    if config.distractor_share and num_groups > 1:
        sets = [_with_distractors(own, names, alike, config.distractor_share, rng) for own in sets]
    # a dropped condition still has a set, as every parameter takes part in every step, but the smallest
    sets = [own if kept else own[:1] for own, kept in zip(sets, conditioned, strict=True)]
    longest = max(map(len, sets))
    padded = np.stack([np.concatenate([own, np.repeat(own[:1], longest - len(own))]) for own in sets])
    mask = np.arange(longest)[None] < np.array([len(own) for own in sets])[:, None]
    return ConditioningPlan(
        group_index=torch.from_numpy(group_index),
        sets=torch.from_numpy(padded),
        mask=torch.from_numpy(mask),
        conditioned=torch.from_numpy(conditioned),
        learned_delta=torch.from_numpy(learned_delta),
    )


def _cut_into_groups(topics: np.ndarray, num_groups: int, *, coherent: bool, rng: np.random.Generator) -> np.ndarray:
    """(N,) group of each sample."""
    order = rng.permutation(len(topics))
    if coherent:
        kinds, kind_of = np.unique(topics, return_inverse=True)
        order = order[np.argsort(rng.permutation(len(kinds))[kind_of[order]], kind="stable")]  # topics side by side
    group_index = np.empty(len(topics), dtype=np.int64)
    group_index[order] = np.repeat(np.arange(num_groups), _group_sizes(len(topics), num_groups, rng))
    return group_index


def _group_sizes(num_samples: int, num_groups: int, rng: np.random.Generator) -> np.ndarray:
    """(G,) sizes, at least 2, that add up to the batch: log-uniform, so that small sets are met as often as large ones."""
    if num_groups == 1:
        return np.array([num_samples])
    weights = np.exp(rng.uniform(0, np.log(MAX_SIZE_RATIO), num_groups))
    cuts = np.rint(np.cumsum(weights) / weights.sum() * (num_samples - 2 * num_groups)).astype(np.int64)
    return np.diff(cuts, prepend=0) + 2  # an image alone in its group would have no negative


def _with_distractors(
    own: np.ndarray, names: np.ndarray, alike: np.ndarray | None, share: float, rng: np.random.Generator
) -> np.ndarray:
    others = np.setdiff1d(names, own)
    if alike is not None:
        others = np.setdiff1d(others, np.flatnonzero(alike[own].any(axis=0)))
    count = min(len(others), round(share * len(own)))
    return np.concatenate([own, rng.choice(others, size=count, replace=False)])
