"""Groups of names that lie near each other in text space: choices as hard as those a specialized encoder may meet.

As B3 (arXiv 2505.11293) mines its batches: hard negatives together, but the most alike left apart, as they are likely to mean
the same and no negatives at all.  Every rank makes the same groups: the features come from the first rank, and their products
are exact.  Shapes: N samples, M unique names, G groups, D embedding.
"""

import numpy as np
from torch import Tensor

GRID = 2.0**20
"""Features are rounded to 1 / GRID, so that float64 holds their products exactly and sums them alike in every order."""


def similarities(name_features: Tensor) -> np.ndarray:
    """(M, D) unit vectors -> (M, M) cosines, the same on every machine that is given the same features."""
    steps = np.rint(name_features.double().cpu().numpy() * GRID)
    cosines: np.ndarray = steps @ steps.T / GRID**2
    return cosines


def cut_into_neighbours(
    names: np.ndarray, cosines: np.ndarray, sizes: np.ndarray, *, too_alike: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(N,) group of each sample: groups grow around names drawn at random, nearest samples first, until each is full.

    A sample whose name is too much like another of a group goes elsewhere; one that then fits nowhere goes where there is room.

    Args:
        names: (N,) rows of `cosines`.
        cosines: (M, M) similarity of names.
        sizes: (G,) samples of each group.
        too_alike: (M, M) bool, names that should not meet in a group; a name and itself are not.
    """
    num_groups = len(sizes)
    seeds = rng.choice(len(cosines), size=num_groups, replace=num_groups > len(cosines))
    nearest_first = np.argsort(-cosines[seeds][:, names], axis=None, kind="stable")  # pairs of a group and a sample
    pairs = list(zip(*(places.tolist() for places in np.unravel_index(nearest_first, (num_groups, len(names)))), strict=True))
    group_index = np.full(len(names), -1)
    room = sizes.copy()
    barred = np.zeros((num_groups, len(cosines)), dtype=bool)  # names that do not go into a group any more
    for heeds_bars in (True, False):
        for group, sample in pairs:
            if group_index[sample] < 0 and room[group] and not (heeds_bars and barred[group, names[sample]]):
                group_index[sample] = group
                room[group] -= 1
                barred[group] |= too_alike[names[sample]]
    return group_index
