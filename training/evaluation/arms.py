"""The arms of a comparison: ways to classify the same pictures among the same names.

    specialized       parameters generated from the task's own names: what is deployed
    neutral           the base parameters, the same for every task
    swapped           parameters generated from another task's names: how much of a gain is not about the names
    twin              the matched SigLIP model, trained without a hypernetwork
    *_centred         the prototypes of the names moved so that their mean is zero, and made unit vectors again
    *_orthogonal      the prototypes replaced by the nearest orthogonal ones (polar factor)

The last two cost nothing and need no hypernetwork, so a gain has to be above them too.  Neither a scale per set nor a
projection of features onto the span of the names is among them: both leave the order of the scores, so top-1, as it is.
Shapes: C names, D embedding.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Arm = Literal[
    "specialized",
    "neutral",
    "swapped",
    "neutral_centred",
    "neutral_orthogonal",
    "twin",
    "twin_centred",
    "twin_orthogonal",
]
ARMS: tuple[Arm, ...] = get_args(Arm)
READ_AS_DEPLOYED: frozenset[Arm] = frozenset({"specialized", "neutral", "twin"})
"""Whose `match` is looked at as well: what someone could deploy as it is."""
COMPARED: tuple[tuple[Arm, Arm], ...] = (
    ("specialized", "neutral"),
    ("specialized", "swapped"),
    ("specialized", "neutral_centred"),
    ("specialized", "neutral_orthogonal"),
    ("specialized", "twin"),
    ("specialized", "twin_centred"),
    ("specialized", "twin_orthogonal"),
    ("swapped", "neutral"),
    ("neutral", "twin"),
)
"""Pairs whose difference is reported with an interval of its own."""


def centred(prototypes: Tensor) -> Tensor:
    """(C, D) unit vectors -> (C, D); without the unit length the order of the scores would be as before."""
    return F.normalize(prototypes - prototypes.mean(dim=0), dim=-1) if len(prototypes) > 1 else prototypes


def orthogonal(prototypes: Tensor) -> Tensor:
    """(C, D) unit vectors -> (C, D): the nearest orthonormal rows, where C <= D; with more names, the nearest tight frame."""
    left, _, right = torch.linalg.svd(prototypes, full_matrices=False)
    return F.normalize(left @ right, dim=-1)


def free_tricks(base: Literal["neutral", "twin"], prototypes: Tensor) -> dict[Arm, Tensor]:
    """Prototypes (C, D) of the label-set tricks, by the arm that uses them."""
    moved = {"centred": centred(prototypes), "orthogonal": orthogonal(prototypes)}
    if base == "neutral":
        return {"neutral_centred": moved["centred"], "neutral_orthogonal": moved["orthogonal"]}
    return {"twin_centred": moved["centred"], "twin_orthogonal": moved["orthogonal"]}
