"""Generated parameters as a named, ordered set of vectors.

Everything that makes, applies, stores or folds a delta goes through `ParameterLayout`, so what is generated (norm scale and
bias today) can grow without touching serving or export.  Shapes: G conditioning groups, P generated values in all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ParameterLayout:
    """Names and sizes of the generated parameters, in the order in which they lie in a flat delta."""

    sizes: tuple[tuple[str, int], ...]

    @property
    def num_values(self) -> int:
        """P."""
        return sum(size for _, size in self.sizes)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """(..., P) -> {name: (..., size)}; views, no copies."""
        if flat.shape[-1] != self.num_values:
            raise ValueError(f"delta has {flat.shape[-1]} values, the encoder generates {self.num_values}")
        parts = torch.split(flat, [size for _, size in self.sizes], dim=-1)
        return {name: part for (name, _), part in zip(self.sizes, parts, strict=True)}

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """{name: (..., size)} -> (..., P).

        Raises:
            ValueError: a name is missing or unknown, or a size is wrong.
        """
        if named.keys() != dict(self.sizes).keys():
            unknown, missing = sorted(named.keys() - dict(self.sizes)), sorted(dict(self.sizes).keys() - named.keys())
            raise ValueError(f"delta does not fit this encoder; unknown: {unknown[:3]}, missing: {missing[:3]}")
        wrong = [
            f"{name} has {named[name].shape[-1]}, not {size}" for name, size in self.sizes if named[name].shape[-1] != size
        ]
        if wrong:
            raise ValueError(f"delta does not fit this encoder: {', '.join(wrong[:3])}")
        return torch.cat([named[name] for name, _ in self.sizes], dim=-1)


@dataclass(frozen=True)
class GroupDelta:
    """Deltas of the conditioning groups of one batch."""

    flat: Tensor
    """(G, P)."""
    group_index: Tensor | None = None
    """(B,) int64, the group of each image; None when one group covers the whole batch (G = 1)."""


class DeltaSlot:
    """What one wrapped layer applies in the coming forward pass: its share of a `GroupDelta`."""

    def __init__(self, scale: Tensor, bias: Tensor, group_index: Tensor | None) -> None:
        self.scale = scale  # (G, C)
        self.bias = bias  # (G, C)
        self.group_index = group_index  # (B,)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied layer starts without a delta: it belongs to one forward pass of the original."""
        return
