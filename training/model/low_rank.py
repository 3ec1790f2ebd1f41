"""Linear maps with a generated low-rank delta: the projection and the convolutions.

    y = (weight + write @ read) x      write (O, r) generated for a set of names, read (r, I k k) learned and shared by all sets

One factor is generated, the other learned.  Were both generated from zero, each would be the other's gradient and neither would
ever move; with `read` at random and `write` at zero the layer starts as its plain self, bit for bit, and the first step reaches
`write`.  What is generated also stays linear: the mean of two deltas is the delta of the mean, half of one is half its effect,
zero is neutral.  And a task costs r values per output channel instead of r per output and input.

One group: the delta goes into the weight before the one matrix product or convolution that there would be anyway.  Several: x
is read once, r channels (by a convolution with the stride and the padding of the layer's own), and each image writes them with
the factor of its group.  Grouped and depthwise convolutions have no such short cut and few weights, and are left alone.
Shapes: B images, I and O channels in and out, k k pixels of a kernel, r rank, G groups, H W pixels.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.parameter_delta import GeneratedLayer

_PLAIN = ("Conv2d", "Conv2dSame")
"""By name: other subclasses compute their weights."""

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class LowRankLayer(GeneratedLayer):
    """Owns `weight` (O, I) or (O, I, k, k), `bias` (O,) or None, and `read` (r, I) or (r, I k k)."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, rank: int, generator: torch.Generator, read_std: float | None = None
    ) -> None:
        """Start with the weight as it is and `read` at random.

        Args:
            rank: cut to what comes in where that is less.
            generator: draws `read` and nothing else.
            read_std: of the entries of `read`; None for rows of about unit length, so that what is read has the size of what
                comes in.
        """
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        inputs = weight[0].numel()
        std = inputs**-0.5 if read_std is None else read_std
        self.read = nn.Parameter(torch.randn(min(rank, inputs), inputs, generator=generator) * std)

    @property
    def generated(self) -> dict[str, int]:
        return {"write": len(self.weight) * len(self.read)}

    def shared_weight(self) -> Tensor | None:
        """The weight for the whole batch, or None when it differs from image to image."""
        if self.delta is None:
            return self.weight
        return self.weight_under(self.delta.values["write"][0]) if self.delta.group_index is None else None

    def weight_under(self, write: Tensor) -> Tensor:
        """(O * r,) generated values -> base + delta, in the shape of the weight and the precision of the values."""
        delta = write.view(len(self.weight), -1) @ self.read.to(write.dtype)
        return self.weight + delta.view_as(self.weight)

    def write_per_image(self) -> Tensor:
        """(B, r, O) transposed factor of each image."""
        assert self.delta is not None and self.delta.group_index is not None
        # embedding, not indexing: its backward pass sums the images of a group in a fixed order
        write = F.embedding(self.delta.group_index, self.delta.values["write"])
        return write.view(len(write), len(self.weight), -1).transpose(1, 2)


class GeneratedLinear(LowRankLayer):
    """Linear over (B, I)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.shared_weight()
        if weight is not None:
            return F.linear(x, weight, self.bias)
        read = F.linear(x, self.read)[:, None]  # (B, 1, r)
        return torch.baddbmm(F.linear(x, self.weight, self.bias)[:, None], read, self.write_per_image())[:, 0]

    def plain(self, write: Tensor) -> nn.Linear:
        """The same layer with (O * r,) generated values folded in."""
        outputs, inputs = self.weight.shape
        linear = nn.Linear(inputs, outputs, bias=self.bias is not None)
        return _take_over(linear, self.weight_under(write), self.bias)


class GeneratedConvolution(LowRankLayer):
    """Ungrouped convolution over (B, I, H, W), with a kernel of one pixel or of several."""

    def __init__(self, conv: nn.Conv2d, *, rank: int, generator: torch.Generator) -> None:
        one_pixel = conv.kernel_size == (1, 1)
        # of many pixels, rows of unit length would be several times those of a weight with few channels in and many out: here
        # one unit of every generated value changes a weight by about its own size, whatever its shape and the rank
        read_std = None if one_pixel else conv.weight.std().item() * min(rank, conv.weight[0].numel()) ** -0.5
        super().__init__(conv.weight, conv.bias, rank=rank, generator=generator, read_std=read_std)
        self._convolve: Any = F.conv2d
        kind = nn.Conv2d
        if type(conv).__name__ == "Conv2dSame" and not one_pixel:  # one pixel needs no padding
            from timm.layers import conv2d_same  # pads by the size of its input, as TensorFlow does

            self._convolve, kind = conv2d_same, type(conv)
        self._form: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        size, bias = conv.kernel_size, conv.bias is not None
        self._new = partial(kind, conv.in_channels, conv.out_channels, size, bias=bias, **self._form)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.shared_weight()
        if weight is not None:
            return self.convolve(x, weight, self.bias)
        y = self.convolve(x, self.weight, self.bias)
        read = self.convolve(x, self.read.view(-1, *self.weight.shape[1:]), None)  # (B, r, H, W)
        height, width = y.shape[2:]
        # activations lie channels last, so pixels by channels is the form in memory and nothing is copied
        rows = torch.baddbmm(_pixels_by_channels(y), _pixels_by_channels(read), self.write_per_image())
        return rows.view(len(y), height, width, -1).permute(0, 3, 1, 2)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """With this layer's stride and padding; `weight` may have any number of output channels."""
        y: Tensor = self._convolve(x, weight, bias, **self._form)
        return y

    def plain(self, write: Tensor) -> nn.Conv2d:
        """The same layer with (O * r,) generated values folded in."""
        return _take_over(self._new(), self.weight_under(write), self.bias)


def wrap_spatial(trunk: nn.Module, *, rank: int, generator: torch.Generator) -> dict[str, GeneratedConvolution]:
    """Replace the convolutions over more than one pixel in place; returns {dotted name: wrapper} in module order.

    Raises:
        ValueError: there is none.
    """
    spatial = ((name, conv) for name, conv in _convolutions(trunk, after=None) if conv.kernel_size != (1, 1))
    return _wrap(trunk, spatial, rank=rank, generator=generator, what="ungrouped convolution over more than one pixel")


def wrap_pointwise(
    trunk: nn.Module, *, rank: int, last_stages: int | None, generator: torch.Generator
) -> dict[str, GeneratedConvolution]:
    """Replace the 1x1 convolutions in place; returns {dotted name: wrapper} in module order.

    Those of squeeze-and-excitation are left alone: they act on one pixel, and what they do, a factor per channel, is what a
    generated norm does.

    Args:
        last_stages: only what comes in the last so many stages and after; None for all.  A stage is what timm lists as one: the
            layers at one resolution.

    Raises:
        ValueError: there is none, or there are not so many stages.
    """
    behind = _convolutions(trunk, after=_last_module_before(trunk, last_stages))
    pointwise = ((name, conv) for name, conv in behind if conv.kernel_size == (1, 1) and "se" not in name.split("."))
    return _wrap(trunk, pointwise, rank=rank, generator=generator, what="1x1 convolution there")


def _wrap(
    trunk: nn.Module, convolutions: Iterable[tuple[str, nn.Conv2d]], *, rank: int, generator: torch.Generator, what: str
) -> dict[str, GeneratedConvolution]:
    wrapped: dict[str, GeneratedConvolution] = {}
    for name, conv in list(convolutions):
        new = GeneratedConvolution(conv, rank=rank, generator=generator)
        parent, _, leaf = name.rpartition(".")
        setattr(trunk.get_submodule(parent), leaf, new)
        wrapped[name] = new
    if not wrapped:
        raise ValueError(f"{type(trunk).__name__} has no {what} whose delta could be generated")
    return wrapped


def _convolutions(trunk: nn.Module, *, after: str | None) -> Iterator[tuple[str, nn.Conv2d]]:
    """Ungrouped convolutions that come behind the module `after`, in module order."""
    reached = after is None
    for name, module in trunk.named_modules():
        if not reached:
            reached = name == after
            continue
        if after is not None and name.startswith(f"{after}."):
            continue
        plain = isinstance(module, nn.Conv2d) and type(module).__name__ in _PLAIN and module.padding_mode == "zeros"
        if plain and module.groups == 1:
            yield name, module


def _last_module_before(trunk: nn.Module, last_stages: int | None) -> str | None:
    """Name of the last module of the stage before the last so many; None when that is the beginning."""
    if last_stages is None:
        return None
    info: Any = getattr(trunk, "feature_info", None)  # timm's list of stages
    stages = [stage["module"] for stage in info or []]
    if not 1 <= last_stages <= len(stages):
        raise ValueError(f"pointwise_stages={last_stages}: {type(trunk).__name__} has the stages {', '.join(stages) or 'none'}")
    return stages[-last_stages - 1] if last_stages < len(stages) else None


def _pixels_by_channels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _take_over(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    layer.weight = nn.Parameter(weight.detach().float())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().float().clone())
    return layer
