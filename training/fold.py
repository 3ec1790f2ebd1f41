"""Folding: a specialized image encoder as plain convolutions, with nothing generated left in it.

A BatchNorm in eval mode is an affine map per channel; behind a convolution the two are one convolution:

    s = (weight + delta_scale) / sqrt(running_var + eps)        W' = W * s
                                                                b' = (b - running_mean) * s + bias + delta_bias

A low-rank delta is added to the weight that it belongs to first, be it a convolution's or the projection's.
Which convolution feeds which norm is observed in one forward pass, not guessed from names, so any timm network will do.
Shapes: B images, C channels, D embedding, P generated values.
"""

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.model.generated_norm import GeneratedBatchNorm2d, GeneratedNorm
from training.model.image_encoder import ImageEncoder
from training.model.low_rank import GeneratedConvolution, GeneratedLinear

_FOLDABLE = ("Conv2d", "Conv2dSame")
"""By name: other subclasses (weight standardization, mixtures) compute their weights and would undo the folding."""


class FoldedImageEncoder(nn.Module):
    """(B, 3, S, S) -> (B, D) unit vectors; the parameters of one task are constants of it."""

    def __init__(self, trunk: nn.Module, projection: nn.Linear) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = projection

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.projection(self.trunk(images)), dim=-1)


def fold_image_encoder(encoder: ImageEncoder, delta: Tensor) -> nn.Module:
    """A copy of the encoder, in eval mode and without gradients, with `base + delta` folded into it.

    A BatchNorm alone behind a convolution disappears into it; any other norm keeps its form, with base + delta as its
    constants.  Low-rank deltas disappear into their weights.

    Args:
        encoder: left as it is.
        delta: (P,), in the order of the encoder's layout; zeros give the neutral encoder.

    Returns:
        (B, 3, S, S) -> (B, D) unit vectors, float32.

    Raises:
        ValueError: the delta does not fit the encoder.
    """
    copied = copy.deepcopy(encoder).requires_grad_(False).eval().float()
    parts = copied.layout.split(delta.detach().to(next(copied.parameters()).device).double())
    projection = copied.projection
    for name, layer in copied.generated.items():
        if isinstance(layer, GeneratedConvolution):
            _replace(copied.trunk, name, layer.plain(parts[f"{name}.write"]))
        elif isinstance(layer, GeneratedLinear):
            projection = layer.plain(parts[f"{name}.write"])
    before = _convolution_before(copied)
    for name, norm in copied.norms.items():
        scale, bias = norm.weight.double(), norm.bias.double()
        if name in copied.generated:
            scale, bias = scale + parts[f"{name}.weight"], bias + parts[f"{name}.bias"]
        conv = before.get(name)
        if conv is None:
            _set(norm, scale, bias)
            continue
        assert isinstance(norm, GeneratedBatchNorm2d)
        _fold_into(conv, norm, scale, bias)
        _replace(copied.trunk, name, nn.Sequential(norm.drop, norm.act))
    assert isinstance(projection, nn.Linear)
    return FoldedImageEncoder(copied.trunk, projection).requires_grad_(False).eval()


def _fold_into(conv: nn.Conv2d, norm: GeneratedBatchNorm2d, scale: Tensor, bias: Tensor) -> None:
    """Float64 throughout, rounded once; scale and bias are (C,)."""
    factor = scale * torch.rsqrt(norm.running_var.double() + norm.eps)
    before = torch.zeros_like(factor) if conv.bias is None else conv.bias.double()
    weight = conv.weight.double() * factor[:, None, None, None]
    conv.weight = nn.Parameter(weight.float(), requires_grad=False)
    conv.bias = nn.Parameter(((before - norm.running_mean.double()) * factor + bias).float(), requires_grad=False)


def _set(norm: GeneratedNorm, scale: Tensor, bias: Tensor) -> None:
    norm.weight = nn.Parameter(scale.float(), requires_grad=False)
    norm.bias = nn.Parameter(bias.float(), requires_grad=False)


def _replace(trunk: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(trunk.get_submodule(parent), leaf, new)


def _convolution_before(encoder: ImageEncoder) -> dict[str, nn.Conv2d]:
    """{name of a BatchNorm: the convolution that feeds it and nothing else}, each of them called exactly once."""
    trace = _Trace()
    convolutions = [module for module in encoder.trunk.modules() if type(module).__name__ in _FOLDABLE]
    norms = {name: norm for name, norm in encoder.norms.items() if isinstance(norm, GeneratedBatchNorm2d)}
    handles = [conv.register_forward_hook(trace.on_convolution) for conv in convolutions]
    handles += [norm.register_forward_pre_hook(trace.on_norm) for norm in norms.values()]
    size = encoder.config.image_size
    try:
        with torch.no_grad(), _CountUses(trace.uses):
            encoder(torch.zeros(1, 3, size, size, device=next(encoder.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, nn.Conv2d] = {}
    for name, norm in norms.items():
        inputs = trace.inputs.get(norm, [])
        if len(inputs) != 1:
            continue
        conv = trace.made_by.get(id(inputs[0]))
        if conv is not None and trace.calls[conv] == 1 and trace.uses[id(inputs[0])] == 1:
            found[name] = conv
    return found


@dataclass
class _Trace:
    """What one forward pass shows.  Tensors are kept, so that an id names one tensor for the whole pass."""

    made_by: dict[int, nn.Conv2d] = field(default_factory=dict)
    """id of a convolution's output -> the convolution."""
    inputs: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    """norm -> what it was called with."""
    calls: Counter[nn.Module] = field(default_factory=Counter)
    uses: Counter[int] = field(default_factory=Counter)
    """id of a tensor -> operators that read it."""
    kept: list[Tensor] = field(default_factory=list)

    def on_convolution(self, conv: nn.Conv2d, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.made_by[id(output)] = conv
        self.calls[conv] += 1
        self.kept.append(output)

    def on_norm(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.inputs.setdefault(norm, []).append(inputs[0])
        self.kept.append(inputs[0])


class _CountUses(TorchDispatchMode):
    """Counts the operators that read each tensor, functions and methods included, which module hooks do not see."""

    def __init__(self, uses: Counter[int]) -> None:
        super().__init__()
        self._uses = uses
        self._kept: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._kept += read  # an id is reused as soon as its tensor is gone
        self._uses.update({id(leaf) for leaf in read})
        return func(*args, **(kwargs or {}))
