"""Sigmoid loss in bounded memory on any number of ranks: blocks of logits, analytic gradient, texts that travel round a ring.

    pair loss = softplus(s z), its slope in z = s sigmoid(s z),   z = scale x.y + bias,   s = -1 for positives, +1 for negatives

so one pass over a block of logits gives its loss and its share of every gradient, and the block is forgotten: three matrix
products, as many as autograd would do, and O((B + S) D + block^2) memory instead of several B x N matrices.

Every rank keeps its images.  The text features go from rank to rank, each block with the gradient it has collected, and are
home after W hops: no rank holds the texts of all, and 2 T D numbers travel where gathering and reducing would move 3 T D.  A
block of features travels while the previous one is computed.  Averaged over the ranks, as data-parallel training averages
gradients, the ranks' losses are `siglip_loss` of one process.

Shapes: B images of this rank, N images of all, W ranks, S texts of each rank, T unique texts (S W with padding), D embedding.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.exchange import pass_on, rank, world_size
from training.loss import PairIds, counted_pairs, positive_pairs

BLOCK = 1024
"""Rows and columns of a block of logits: large enough for the matrix products, small enough for the processor's cache."""


def ring_siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: Tensor,
    logit_bias: Tensor,
    images: PairIds,
    texts: PairIds,
    block: int = BLOCK,
) -> Tensor:
    """`siglip_loss` of this rank's images with the captions of all ranks; logits and sums are fp32 also under autocast.

    Every rank must take part, with equally many texts, and backpropagate the same factor (the loss weight or 1 / accumulation):
    the gradients of the texts are summed over the ranks before the factor is known.

    Args:
        image_features: (B, D) unit vectors.
        text_features: (S, D) unit vectors, the unique texts dealt to this rank (see `training.exchange`).
        logit_scale: () already exponentiated.
        logit_bias: ().
        images: of this rank's samples, (B,) each.
        texts: of the samples of all ranks, (N,) each; the number of a text is its place before dealing.
        block: largest number of rows and columns of logits held at once.

    Returns:
        () this rank's loss; the mean over the ranks is the loss of the contrastive batch.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        loss: Tensor = _RingLoss.apply(image_features, text_features, logit_scale, logit_bias, images, texts, block)
        return loss


class _RingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        images: PairIds,
        texts: PairIds,
        block: int,
    ) -> Tensor:
        sums = _Sums.zeros(image_features)
        travelling, gradient = text_features, None
        for hop in range(world_size()):
            arriving = pass_on(travelling) if hop + 1 < world_size() else None
            owner = (rank() - hop) % world_size()
            columns = (texts.text % world_size() == owner).nonzero()[:, 0] if world_size() > 1 else slice(None)
            here = texts[columns]
            collected = _add_texts(
                sums, image_features, travelling, here.text // world_size(), logit_scale, logit_bias, images, here, block
            )
            if gradient is not None:
                collected += gradient.wait()
            gradient = pass_on(collected)
            if arriving is not None:
                travelling = arriving.wait()
        assert gradient is not None
        count = len(image_features)
        ctx.save_for_backward(
            (sums.image_grad / count).to(image_features.dtype),
            (gradient.wait() / count).to(text_features.dtype),
            (sums.scale_grad / count).to(logit_scale.dtype),
            (sums.bias_grad / count).to(logit_bias.dtype),
        )
        return (sums.loss / count).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradient * factor for gradient in ctx.saved_tensors), None, None, None)


@dataclass
class _Sums:
    """What this rank's images have summed up over the texts that came by."""

    loss: Tensor
    image_grad: Tensor
    """(B, D)."""
    scale_grad: Tensor
    bias_grad: Tensor

    @staticmethod
    def zeros(image_features: Tensor) -> "_Sums":
        # scalars in double: there are many blocks, and it costs nothing
        loss, scale_grad, bias_grad = torch.zeros(3, dtype=torch.float64, device=image_features.device)
        return _Sums(loss, torch.zeros_like(image_features, dtype=torch.float32), scale_grad, bias_grad)


def _add_texts(
    sums: _Sums,
    image_features: Tensor,
    text_features: Tensor,
    rows: Tensor,
    scale: Tensor,
    bias: Tensor,
    images: PairIds,
    texts: PairIds,
    block: int,
) -> Tensor:
    """Add the pairs of all images with some texts to the sums; returns (S, D), the gradient of the text features.

    `rows` (n,) says which of the (S, D) text features each of the n texts is.
    """
    row_grad = torch.empty(len(rows), text_features.shape[1], dtype=torch.float32, device=text_features.device)
    for columns in _blocks(len(rows), block):
        y = text_features[rows[columns]].float()
        scaled = y * scale
        y_grad = row_grad[columns].zero_()
        for some in _blocks(len(image_features), block):
            x = image_features[some].float()
            logits = torch.addmm(bias, x, scaled.T)
            # -1 where text and image belong together: the sign that turns a logit into the softplus argument of its loss
            sign = positive_pairs(images[some], texts[columns]).to(logits.dtype).mul_(-2).add_(1)
            argument = logits.mul_(sign)
            pair_loss, slope = F.softplus(argument), argument.sigmoid_().mul_(sign)
            counted = counted_pairs(images[some], texts[columns])
            if counted is not None:
                pair_loss.mul_(counted)
                slope.mul_(counted)
            sums.loss += pair_loss.sum()
            sums.bias_grad += slope.sum()
            sums.image_grad[some].addmm_(slope, scaled)
            y_grad.addmm_(slope.T, x)
        sums.scale_grad += (y_grad * y).sum()
        y_grad.mul_(scale)
    # several samples may have one caption; unlike index_add_ and index_put_, this sums in a fixed order on every device
    return torch.ops.aten.embedding_dense_backward(row_grad, rows, len(text_features), -1, False)


def _blocks(count: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, count)) for start in range(0, count, block)]
