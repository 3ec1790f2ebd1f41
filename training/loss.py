"""Sigmoid (SigLIP) loss with several positives a row, and the exchange between ranks it needs.

Every rank holds the pairs of its own images with the texts of the whole contrastive batch.  Averaged over the ranks, as
data-parallel training averages gradients, the ranks' losses are the loss of one process; tests/distributed/test_objective.py
holds them together. Shapes: B local batch, N contrastive batch over all ranks, D embedding.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: Tensor,
    logit_bias: Tensor,
    positive: Tensor,
    counted: Tensor | None = None,
) -> Tensor:
    """Mean over images of the sigmoid loss summed over texts (SigLIP, arXiv 2303.15343, equation 1, with several positives).

    Args:
        image_features: (B, D) unit vectors.
        text_features: (N, D) unit vectors.
        logit_scale: () already exponentiated.
        logit_bias: ().
        positive: (B, N) bool, True where text and image belong together: an image's own text, and every text that says the
        same. counted: (B, N) bool, False for pairs that are neither positive nor negative; None counts all.
    """
    logits = logit_scale * image_features @ text_features.T + logit_bias  # (B, N)
    pair_loss = -F.logsigmoid(torch.where(positive, logits, -logits))
    if counted is not None:
        pair_loss = pair_loss * counted
    return pair_loss.sum() / len(image_features)


def gather_with_gradient(features: Tensor) -> Tensor:
    """(B, D) on each of W ranks -> (W * B, D) on every rank, in rank order; gradients flow back to the rank a row came from."""
    if _world_size() == 1:
        return features
    gathered: Tensor = _GatherRows.apply(features)
    return gathered


def gather_values(values: Tensor) -> Tensor:
    """(B, ...) on each of W ranks -> (W * B, ...) on every rank, in rank order, without gradient."""
    if _world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)  # type: ignore[attr-defined]
        return gather_values(rows)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)  # every rank used the rows of every other
        num_rows: int = ctx.num_rows  # type: ignore[attr-defined]
        return total[dist.get_rank() * num_rows :][:num_rows]


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
