"""Batch normalization with scale and bias per image, over the batch of all ranks, in as many passes as the fused one takes.

    y = (x - mean) / std * scale + bias = x A + (bias - mean A),   A = scale / std

so the forward pass is the statistics and one multiply-add, and with the per-image sums S1 = sum g and S2 = sum g x over the
pixels so is the backward pass:

    d scale = (S2 - mean S1) / std,   d bias = S1,   dx = g A + x K + L

where K and L (C,) come from the means of g scale, and of that times (x - mean) / std.

The batch is that of all ranks, equally many images each: moments are combined from those of the ranks (Chan et al., 1979: no
difference of large sums), and the means of the backward pass are taken over the ranks, as every pixel moved the statistics.
Shapes: B images, C channels, H W pixels.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def batch_norm_per_image(
    x: Tensor, scale: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, *, momentum: float, eps: float
) -> Tensor:
    """Normalize by the statistics of the batch over all ranks, and move the running statistics, in place.

    Args:
        x: (B, C, H, W).
        scale: (B, C), or (1, C) for all images.
        bias: as `scale`.
        running_mean: (C,), buffer.
        running_var: (C,), buffer, kept unbiased as torch does.
        momentum: share of the new statistics.
        eps: added to the variance.
    """
    y: Tensor = _BatchNormPerImage.apply(x, scale, bias, running_mean, running_var, momentum, eps)
    return y


class _BatchNormPerImage(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean, var, count = _moments(x)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
        inverse_std = torch.rsqrt(var + eps)
        slope = scale * inverse_std
        ctx.save_for_backward(x, scale, mean, inverse_std)
        ctx.count = count
        return torch.addcmul(_over_pixels(bias - mean * slope), x, _over_pixels(slope)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, inverse_std = ctx.saved_tensors
        bias_grad = g.float().sum((2, 3))  # (B, C)
        work = g.float() * x  # the only (B, C, H, W) that is allocated: new pages cost more than the arithmetic
        scale_grad = (work.sum((2, 3)) - mean * bias_grad) * inverse_std
        sums = torch.stack([(scale * bias_grad).sum(0), (scale * scale_grad).sum(0)])
        if _world_size() > 1:
            dist.all_reduce(sums)
        mean_g, mean_gy = sums / ctx.count  # of g scale, and of g scale y
        pull = -inverse_std.square() * mean_gy
        shift = -inverse_std * mean_g - mean * pull
        torch.addcmul(_over_pixels(shift[None]), x, _over_pixels(pull[None]), out=work)
        x_grad = work.addcmul_(g, _over_pixels(scale * inverse_std)).to(x.dtype)
        if len(scale) == 1:
            scale_grad, bias_grad = scale_grad.sum(0, keepdim=True), bias_grad.sum(0, keepdim=True)
        return x_grad, scale_grad, bias_grad, None, None, None, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """(C,) mean and biased variance over all ranks in fp32, and the number of values of a channel."""
    count = x.numel() // x.shape[1]
    mean, var = _local_moments(x)
    if _world_size() == 1:
        return mean, var, count
    mine = torch.stack([mean, var])
    parts = [torch.empty_like(mine) for _ in range(_world_size())]
    dist.all_gather(parts, mine)
    means, variances = torch.stack(parts, dim=1)  # each (W, C)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0), count * _world_size()


def _local_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    # torch.var_mean takes 40 times as long on a CPU in channels-last layout (torch 2.13)
    scratch = torch.zeros(2, x.shape[1], dtype=torch.float32, device=x.device)  # fp32 statistics also of bf16 values
    mean, var = torch.ops.aten.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)
    return mean, var


def _over_pixels(values: Tensor) -> Tensor:
    """(B, C) -> (B, C, 1, 1)."""
    return values[:, :, None, None]


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
