"""Pictures of many tasks in one forward pass: every picture of a batch has generated parameters of its own.  For inference.

The neutral encoder can do that too (`GroupDelta`), in the form that training needs.  Here all that depends on a task alone is
computed once a task, and not in every batch:

    BatchNorm     x * slope + shift,  slope = (weight + delta) / sqrt(running_var + eps),
                                      shift = bias + delta - running_mean * slope
    LayerNorm     normalize(x) * (weight + delta) + (bias + delta)
    low rank      W x + write (read x),  where one convolution gives W x and read x, as its first and its last channels

Shapes: B pictures, P values of a task (as many as its delta has), C channels, D embedding, O I channels out and in, r rank.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.generated_norm import GeneratedBatchNorm2d, GeneratedLayerNorm
from training.model.image_encoder import ImageEncoder
from training.model.low_rank import GeneratedConvolution, GeneratedLinear
from training.model.parameter_delta import GeneratedLayer


class PerImageEncoder(nn.Module):
    """(B, 3, S, S) and (B, P) -> (B, D) unit vectors; one forward pass at a time."""

    def __init__(self, encoder: ImageEncoder) -> None:
        """Shares the parameters of `encoder`, which is left as it is; they must not change any more.

        Raises:
            ValueError: a layer with generated parameters that has no such form.
        """
        super().__init__()
        shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
        copied = copy.deepcopy(encoder, memo=shared).eval()
        self._layout = copied.layout
        self._layers: dict[str, PerImageLayer] = {}
        self._projection: nn.Module = copied.projection
        for name, layer in copied.generated.items():
            self._layers[name] = new = per_image_layer(layer)
            if layer is copied.projection:
                self._projection = new
                continue
            parent, _, leaf = name.rpartition(".")
            setattr(copied.trunk.get_submodule(parent), leaf, new)
        self._trunk = copied.trunk
        self._names = [(layer, own) for layer in self._layers.values() for own in layer.generated]
        self._sizes = [size for layer in self._layers.values() for size in layer.generated.values()]

    @torch.no_grad()
    def prepare(self, delta: Tensor) -> Tensor:
        """(P,) flat delta of a task, in the order of the encoder's layout -> (P,) what `forward` takes.

        Raises:
            ValueError: the delta does not fit the encoder.
        """
        parts = self._layout.split(delta)
        prepared = []
        for name, layer in self._layers.items():
            found = layer.prepare({own: parts[f"{name}.{own}"] for own in layer.generated})
            prepared += [found[own].reshape(-1) for own in layer.generated]
        return torch.cat(prepared)

    def forward(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Encode each picture under its own parameters.

        Args:
            images: (B, 3, S, S), normalized; fastest when channels last.
            parameters: (B, P), rows from `prepare`.
        """
        for (layer, own), values in zip(self._names, torch.split(parameters, self._sizes, dim=1), strict=True):
            layer.values[own] = values
        return F.normalize(self._projection(self._trunk(images)).float(), dim=-1)


class PerImageLayer(nn.Module, ABC):
    """A layer with generated parameters, in the form of this module."""

    def __init__(self, generated: Mapping[str, int]) -> None:
        super().__init__()
        self.generated = dict(generated)
        self.values: dict[str, Tensor] = {}
        """{name within the layer: (B, size)} for the coming forward pass."""

    @abstractmethod
    def prepare(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (size,)} of a delta -> the same names and sizes, ready to use."""


class _BatchNorm(PerImageLayer):
    def __init__(self, norm: GeneratedBatchNorm2d) -> None:
        super().__init__(norm.generated)
        self._norm = norm

    def prepare(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        norm = self._norm
        slope = (norm.weight + delta["weight"]) * torch.rsqrt(norm.running_var + norm.eps)
        return {"weight": slope, "bias": norm.bias + delta["bias"] - norm.running_mean * slope}

    def forward(self, x: Tensor) -> Tensor:
        slope, shift = self.values["weight"][:, :, None, None], self.values["bias"][:, :, None, None]
        y: Tensor = self._norm.act(torch.addcmul(shift, x, slope))
        return y


class _LayerNorm(PerImageLayer):
    def __init__(self, norm: GeneratedLayerNorm) -> None:
        super().__init__(norm.generated)
        self._norm = norm

    def prepare(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": self._norm.weight + delta["weight"], "bias": self._norm.bias + delta["bias"]}

    def forward(self, x: Tensor) -> Tensor:
        norm = self._norm
        if norm.channels_first:
            x = x.permute(0, 2, 3, 1)
        size = (len(x), *(1,) * (x.ndim - 2), norm.num_features)
        scale, bias = self.values["weight"].view(size), self.values["bias"].view(size)
        y = torch.addcmul(bias, F.layer_norm(x, (norm.num_features,), eps=norm.eps), scale)
        return y.permute(0, 3, 1, 2) if norm.channels_first else y


class _Convolution(PerImageLayer):
    def __init__(self, conv: GeneratedConvolution) -> None:
        super().__init__(conv.generated)
        self._conv = conv
        self._outputs = len(conv.weight)
        both = torch.cat([conv.weight, conv.read.view(-1, *conv.weight.shape[1:])]).detach()
        self.register_buffer("_both", both.contiguous(memory_format=torch.channels_last), persistent=False)
        bias = None if conv.bias is None else F.pad(conv.bias.detach(), (0, len(conv.read)))
        self.register_buffer("_bias", bias, persistent=False)

    _both: Tensor
    """(O + r, I, k, k): the weight, and behind it `read`."""
    _bias: Tensor | None

    def prepare(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"write": delta["write"].view(self._outputs, -1).T}  # (r, O)

    def forward(self, x: Tensor) -> Tensor:
        y = self._conv.convolve(x, self._both, self._bias)
        num_pictures, _, height, width = y.shape
        # channels last, so pixels by channels is the form in memory and nothing is copied
        rows = y.permute(0, 2, 3, 1).reshape(num_pictures, height * width, -1)
        write = self.values["write"].view(num_pictures, -1, self._outputs)
        rows = torch.baddbmm(rows[:, :, : self._outputs], rows[:, :, self._outputs :], write)
        return rows.view(num_pictures, height, width, -1).permute(0, 3, 1, 2)


class _Linear(PerImageLayer):
    def __init__(self, linear: GeneratedLinear) -> None:
        super().__init__(linear.generated)
        self._linear = linear

    def prepare(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"write": delta["write"].view(len(self._linear.weight), -1).T}  # (r, O)

    def forward(self, x: Tensor) -> Tensor:
        linear = self._linear
        write = self.values["write"].view(len(x), -1, len(linear.weight))
        read = F.linear(x, linear.read)[:, None]  # (B, 1, r)
        return torch.baddbmm(F.linear(x, linear.weight, linear.bias)[:, None], read, write)[:, 0]


def per_image_layer(layer: GeneratedLayer) -> PerImageLayer:
    """Raises ValueError for a kind of layer that is not known here."""
    if isinstance(layer, GeneratedBatchNorm2d):
        return _BatchNorm(layer)
    if isinstance(layer, GeneratedLayerNorm):
        return _LayerNorm(layer)
    if isinstance(layer, GeneratedConvolution):
        return _Convolution(layer)
    if isinstance(layer, GeneratedLinear):
        return _Linear(layer)
    raise ValueError(f"{type(layer).__name__} has no form with parameters per picture")
