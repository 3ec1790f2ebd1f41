"""Weights in half the bytes: what of a model may be stored as float16, and the model that is left after that.

Matrices and kernels are rounded: they are nearly all of a model, their values lie around 0.01 to 10, and a rounding of one part
in 2,000 averages out over the hundreds of products that make one activation.  Everything with fewer than two dimensions stays
as it is, for it is below 1 % of the bytes and less forgiving: running variances (beyond 65,504 they would become infinite,
below 6e-8 zero, and the layer divides by their root), scales and biases of norms (what is generated is added to them), the
logit scale (stored as a logarithm) and bias, counters.
"""

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from infra.errors import BadInputError

Network = TypeVar("Network", bound=nn.Module)
LARGEST = torch.finfo(torch.float16).max


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `state_dict` with its floating tensors of two and more dimensions as float16, and the others as they are.

    Raises:
        BadInputError: a value is not finite, or would be infinite in float16; the message names its tensor.
    """
    return {name: _half(name, value) if _may_be_half(value) else value for name, value in state.items()}


def rounded(model: Network) -> Network:
    """A copy in float32 that computes what a model read back from half precision computes.

    Raises:
        BadInputError: as `half_precision`.
    """
    found = copy.deepcopy(model)
    found.load_state_dict(half_precision(model.state_dict()))  # copying into float32 parameters is exact
    return found


def _may_be_half(value: Tensor) -> bool:
    return value.is_floating_point() and value.dim() >= 2


def _half(name: str, value: Tensor) -> Tensor:
    largest = value.abs().max().item() if value.numel() else 0.0
    if not largest <= LARGEST:  # also not a number
        raise BadInputError(
            f"{name} holds {largest:g}, and half precision ends at {LARGEST:,.0f}: this model cannot be stored in it"
        )
    return value.half()
