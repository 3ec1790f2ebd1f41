"""Normalization layers whose scale and bias are *learned base + generated delta*.

    y = normalize(x) * (weight + delta_scale) + (bias + delta_bias)

The statistics are shared: normalize first, generated scale and shift after.  With one conditioning group the sum goes into the
fused kernel; with several, each image gets the scale and shift of its group in the same forward pass.

Batch statistics are those of the *global* batch: the moments are combined over the ranks with gradient (gloo too, where torch's
SyncBatchNorm refuses).  Shapes: B images, C channels, G groups.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.batch_norm import batch_norm_per_image
from training.model.parameter_delta import GeneratedLayer


class GeneratedNorm(GeneratedLayer):
    """Owns the base scale and bias; the delta is one of each."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.counts = True
        """Running statistics take in the next pass; not when it repeats an earlier one in backward."""

    @property
    def num_features(self) -> int:
        return self.weight.numel()

    @property
    def generated(self) -> dict[str, int]:
        return {"weight": self.num_features, "bias": self.num_features}

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(C,) scale and bias for the whole batch, or None when they differ from image to image."""
        if self.delta is None:
            return self.weight, self.bias
        if self.delta.group_index is None:
            return self.weight + self.delta.values["weight"][0], self.bias + self.delta.values["bias"][0]
        return None

    def affine_per_image(self) -> tuple[Tensor, Tensor]:
        """(B, C) scale and bias of each image."""
        assert self.delta is not None and self.delta.group_index is not None
        index, delta = self.delta.group_index, self.delta.values
        # embedding, not indexing: its backward pass sums the images of a group in a fixed order
        return F.embedding(index, self.weight + delta["weight"]), F.embedding(index, self.bias + delta["bias"])


class GeneratedBatchNorm2d(GeneratedNorm):
    """BatchNorm over (B, C, H, W), with the activation that timm fuses into it."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.weight, norm.bias)
        assert norm.running_mean is not None and norm.running_var is not None
        self.eps = norm.eps
        self.momentum = 0.1 if norm.momentum is None else norm.momentum
        self.register_buffer("running_mean", norm.running_mean.clone())
        self.register_buffer("running_var", norm.running_var.clone())
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        shared = self.affine()
        if shared and not (self.training and _world_size() > 1):
            y = self._fused(x, *shared)
        elif self.training:
            scale, bias = (shared[0][None], shared[1][None]) if shared else self.affine_per_image()
            y = batch_norm_per_image(x, scale, bias, self.running_mean, self.running_var, momentum=self._share(), eps=self.eps)
        else:
            scale, bias = self.affine_per_image()
            y = torch.addcmul(bias[:, :, None, None], self._fused(x, None, None), scale[:, :, None, None])
        # under bf16, fp32 scales would leave wide activations behind
        return self.act(self.drop(y.to(x.dtype)))

    def _fused(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, self.training, self._share(), self.eps)

    def _share(self) -> float:
        """Of this pass in the running statistics."""
        return self.momentum if self.counts else 0.0


class GeneratedLayerNorm(GeneratedNorm):
    """LayerNorm over the channels of (..., C), or of (B, C, H, W) when `channels_first`."""

    def __init__(self, norm: nn.LayerNorm, *, channels_first: bool) -> None:
        super().__init__(norm.weight, norm.bias)
        self.eps = norm.eps
        self.channels_first = channels_first

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_first:
            x = x.permute(0, 2, 3, 1)
        shared = self.affine()
        if shared:
            y = F.layer_norm(x, (self.num_features,), shared[0], shared[1], self.eps)
        else:
            scale, bias = (value.view(len(value), *(1,) * (x.ndim - 2), -1) for value in self.affine_per_image())
            y = F.layer_norm(x, (self.num_features,), eps=self.eps) * scale + bias
        return y.permute(0, 3, 1, 2) if self.channels_first else y


def wrap_norms(trunk: nn.Module) -> dict[str, GeneratedNorm]:
    """Replace every normalization layer in place; returns {dotted name: wrapper} in module order.

    Raises:
        ValueError: the trunk holds a kind of normalization that cannot be wrapped, or none at all.
    """
    wrapped: dict[str, GeneratedNorm] = {}
    for name, module in list(trunk.named_modules()):
        new = _wrap(name, module)
        if new is None:
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(trunk.get_submodule(parent), leaf, new)
        wrapped[name] = new
    if not wrapped:
        raise ValueError(f"{type(trunk).__name__} has no normalization layer whose parameters could be generated")
    return wrapped


def _wrap(name: str, module: nn.Module) -> GeneratedNorm | None:
    if isinstance(module, nn.BatchNorm2d | nn.LayerNorm) and (module.weight is None or module.bias is None):
        raise ValueError(f"{name} is a {type(module).__name__} without scale or bias; there is nothing to generate")
    if isinstance(module, nn.BatchNorm2d):
        return GeneratedBatchNorm2d(module)
    if isinstance(module, nn.LayerNorm):
        return GeneratedLayerNorm(module, channels_first=type(module).__name__ == "LayerNorm2d")
    if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._BatchNorm | nn.InstanceNorm2d):
        raise ValueError(f"{name} is a {type(module).__name__}; only BatchNorm2d and LayerNorm can be generated")
    return None


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
