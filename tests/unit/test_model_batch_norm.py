"""Batch normalization with parameters per image: torch's own, with the parameters applied after it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from training.model.batch_norm import batch_norm_per_image

MOMENTUM, EPS = 0.2, 1e-5


def values_and_gradients(*, rows: int, ours: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Output, gradients and running statistics of a random batch far from zero mean."""
    generator = torch.Generator().manual_seed(0)
    x, scale, bias, direction = (
        torch.randn(shape, generator=generator, dtype=torch.float64) * factor + offset
        for shape, factor, offset in (
            ((6, 3, 5, 4), 2.0, 5.0),
            ((rows, 3), 0.5, 1.0),
            ((rows, 3), 0.5, 0.0),
            ((6, 3, 5, 4), 1.0, 0.0),
        )
    )
    x = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    scale, bias = (value.float().requires_grad_() for value in (scale, bias))
    mean, var = torch.zeros(3), torch.ones(3)
    if ours:
        y = batch_norm_per_image(x, scale, bias, mean, var, momentum=MOMENTUM, eps=EPS)
    else:
        normalized = F.batch_norm(x, mean, var, training=True, momentum=MOMENTUM, eps=EPS)
        y = normalized * scale[:, :, None, None] + bias[:, :, None, None]
    (y * direction.to(y.dtype)).sum().backward()
    assert x.grad is not None and scale.grad is not None and bias.grad is not None
    return [y.detach(), x.grad, scale.grad, bias.grad, mean, var]


@pytest.mark.parametrize("rows", [1, 6])
def test_it_is_batch_norm_with_parameters_per_image(rows: int) -> None:
    found = values_and_gradients(rows=rows, ours=True, dtype=torch.float32)
    expected = values_and_gradients(rows=rows, ours=False, dtype=torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # fp32, with a mean of 2.5 standard deviations


def test_bf16_values_keep_fp32_statistics_and_parameters() -> None:
    found = values_and_gradients(rows=6, ours=True, dtype=torch.bfloat16)
    expected = values_and_gradients(rows=6, ours=False, dtype=torch.float32)
    assert [value.dtype for value in found] == [torch.bfloat16] * 2 + [torch.float32] * 4
    for ours, theirs in zip(found, expected, strict=True):
        # the values are rounded to 8 bits; sums of 120 of them stay within a few roundings
        assert (ours.float() - theirs).abs().max() <= 0.03 * theirs.abs().max()
