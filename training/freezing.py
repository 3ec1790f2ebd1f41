"""Two-stage training: parts of the model held still for the first steps, while the hypernetwork learns what to do with them.

A frozen part has no gradient and costs none, and its learning rate is 0, so that neither decay nor a moment moves it.  A
frozen trunk is in eval mode: its running statistics do not move, and normalize.  What only generated deltas need (the
hypernetwork, the learned factor of low-rank deltas) belongs to no part and always trains.
"""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from training.model.hyperclip import HyperClip

Part = Literal["image_trunk", "projection", "text_encoder", "logit", "norm"]
"""`norm` is the base scale and bias of the norms alone, whose statistics go on moving: what is generated for them then carries
all of it, as the absolute values of the paper do."""


def frozen_names(model: HyperClip, parts: Sequence[Part]) -> set[str]:
    """Names of the parameters that these parts hold."""
    norms = {f"image_encoder.trunk.{name}.{own}" for name in model.image_encoder.norms for own in ("weight", "bias")}
    members: dict[Part, set[str]] = {part: set() for part in ("image_trunk", "projection", "text_encoder", "logit", "norm")}
    for name, _ in model.named_parameters():
        if is_of_deltas(name):
            continue
        if name.startswith("image_encoder.trunk."):
            members["image_trunk"].add(name)
        elif name.startswith("image_encoder.projection."):
            members["projection"].add(name)
        elif name.startswith("text_encoder."):
            members["text_encoder"].add(name)
        else:
            members["logit"].add(name)
    members["norm"] = norms
    return {name for part in parts for name in members[part]}


def is_of_deltas(name: str) -> bool:
    """Whether a parameter or buffer of a HyperCLIP exists only to generate or to apply deltas: its twin lacks it."""
    return name.startswith("hypernetwork.") or name.endswith(".read")


class Freezer:
    """Holds parts of a model still while it is told to."""

    def __init__(self, model: HyperClip, parts: Sequence[Part]) -> None:
        names = frozen_names(model, parts)
        self.parameters: list[nn.Parameter] = [value for name, value in model.named_parameters() if name in names]
        self._trunk = model.image_encoder.trunk if "image_trunk" in parts else None
        self.frozen = False

    def set(self, *, frozen: bool) -> None:
        """Freeze or release; does nothing where that is how it is."""
        if frozen == self.frozen:
            return
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)
        if self._trunk is not None:
            self._trunk.train(not frozen)
        self.frozen = frozen
