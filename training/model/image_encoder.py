"""Small image encoder: a timm network with generated norms, and a linear projection.

Shapes: B images, H W pixels, F trunk features, D embedding, G conditioning groups, P generated values.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.generated_norm import GeneratedNorm, wrap_norms
from training.model.parameter_delta import DeltaSlot, GroupDelta, ParameterLayout


@dataclass(frozen=True)
class ImageEncoderConfig:
    trunk: str
    """Name of a timm network whose norms are BatchNorm2d or LayerNorm."""
    image_size: int
    """Side of the square input in pixels."""
    embed_dim: int
    """D."""


class ImageEncoder(nn.Module):
    """Images -> unit vectors, under the neutral parameters or under generated deltas."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _create_trunk(config.trunk)
        self._norms = wrap_norms(self.trunk)
        self._recomputes = False
        with torch.no_grad():
            features = self.trunk.eval()(torch.zeros(1, 3, config.image_size, config.image_size)).shape[-1]
        self.trunk.train()
        self.projection = nn.Linear(features, config.embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=features**-0.5)
        self.layout = ParameterLayout(
            tuple((f"{name}.{kind}", norm.num_features) for name, norm in self._norms.items() for kind in ("weight", "bias"))
        )

    @property
    def norms(self) -> dict[str, GeneratedNorm]:
        """The wrapped norms by their name in the trunk."""
        return self._norms

    def recompute_activations(self) -> None:
        """Keep only what goes from stage to stage for the backward pass.

        Raises:
            ValueError: timm does not offer it for this trunk.
        """
        trunk: Any = self.trunk  # whatever timm made
        try:
            trunk.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:  # timm's way of saying no
            raise ValueError(f"timm cannot recompute the activations of {self.config.trunk}: {error}") from error
        self._recomputes = True

    def forward(self, images: Tensor, delta: GroupDelta | None = None) -> Tensor:
        """Encode images under the parameters of their groups.

        Args:
            images: (B, 3, H, W), normalized.
            delta: of the groups in this batch; None for the neutral parameters.

        Returns:
            (B, D) unit vectors.
        """
        self._set_delta(delta)
        self._count_statistics(counts=True)
        # convolutions follow the layout of their input; channels last halves a training step on CPUs and feeds tensor cores
        features = self.projection(self.trunk(images.contiguous(memory_format=torch.channels_last)))
        self._count_statistics(counts=not self._recomputes)  # what passes through the norms from here on is backward, repeating
        if not torch.is_grad_enabled():
            self._set_delta(None)  # in training it stays: recomputation in backward must see it
        return F.normalize(features.float(), dim=-1)

    def _count_statistics(self, *, counts: bool) -> None:
        for norm in self._norms.values():
            norm.counts = counts

    def _set_delta(self, delta: GroupDelta | None) -> None:
        if delta is None:
            for norm in self._norms.values():
                norm.delta = None
            return
        if delta.group_index is None and len(delta.flat) != 1:
            raise ValueError(f"{len(delta.flat)} groups need a group_index that says which image is in which")
        parts = self.layout.split(delta.flat)
        for name, norm in self._norms.items():
            norm.delta = DeltaSlot(parts[f"{name}.weight"], parts[f"{name}.bias"], delta.group_index)


def _create_trunk(name: str) -> nn.Module:
    _repair_torchvision_import()
    import timm

    if name not in timm.list_models():
        raise ValueError(f"timm has no network {name!r}; see timm.list_models()")
    trunk: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    return trunk


_kept_alive: list[object] = []


def _repair_torchvision_import() -> None:
    """Let torchvision, which timm imports, load beside a CPU build of torch.

    Its wheels are built against CUDA torch and fail on registering two operators that nothing here uses; declaring the
    operators is enough.
    """
    if torch.version.cuda is not None or _kept_alive:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
