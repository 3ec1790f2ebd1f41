"""Generated parameters as a named, ordered set of vectors, and what the layers that apply them have in common.

Everything that makes, applies, stores or folds a delta goes through `ParameterLayout`, so what is generated (norms, projection,
convolutions) is a matter of the image encoder alone: serving and export see P values.
Shapes: G conditioning groups, P generated values in all, B images.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


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

    def __init__(self, values: Mapping[str, Tensor], group_index: Tensor | None) -> None:
        self.values = values  # {name within the layer: (G, size)}
        self.group_index = group_index  # (B,)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied layer starts without a delta: it belongs to one forward pass of the original."""
        return


class GeneratedLayer(nn.Module, ABC):
    """A layer that owns its base parameters and applies the delta given for the coming forward pass.

    The delta stays until the next one is set, so that recomputation in backward sees the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.delta: DeltaSlot | None = None

    @property
    @abstractmethod
    def generated(self) -> dict[str, int]:
        """{name within the layer: number of values} of what is generated for it."""


def parameter_layout(layers: Mapping[str, GeneratedLayer]) -> ParameterLayout:
    """The layout of what is generated for layers known by name."""
    return ParameterLayout(
        tuple((f"{name}.{own}", size) for name, layer in layers.items() for own, size in layer.generated.items())
    )


def set_delta(layers: Mapping[str, GeneratedLayer], layout: ParameterLayout, delta: GroupDelta | None) -> None:
    """Give each layer its share of a delta for the coming forward pass; None for the neutral parameters.

    Raises:
        ValueError: several groups and no index, or a delta of another encoder.
    """
    if delta is None:
        for layer in layers.values():
            layer.delta = None
        return
    if delta.group_index is None and len(delta.flat) != 1:
        raise ValueError(f"{len(delta.flat)} groups need a group_index that says which image is in which")
    parts = layout.split(delta.flat)
    for name, layer in layers.items():
        layer.delta = DeltaSlot({own: parts[f"{name}.{own}"] for own in layer.generated}, delta.group_index)
