"""Sigmoid (SigLIP) loss with several positives a row: the readable reference.

Training computes it in blocks and over many ranks (training/ring_loss.py); tests/distributed/test_siglip_ring.py holds the two
together.  Shapes: B images, N texts, D embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairIds:
    """What decides which images and texts belong together: a few numbers a sample, never an N x N mask."""

    text: Tensor
    """(n,) int64, number of the sample's caption among the unique texts."""
    concept: Tensor
    """(n,) int64."""
    group: Tensor | None
    """(n,) int64, conditioning group; None when there is one."""

    def __getitem__(self, index: Tensor | slice) -> "PairIds":
        return PairIds(self.text[index], self.concept[index], None if self.group is None else self.group[index])


def positive_pairs(images: PairIds, texts: PairIds) -> Tensor:
    """(B, N) bool, True where text and image belong together: the same caption or the same concept."""
    return (images.text[:, None] == texts.text) | (images.concept[:, None] == texts.concept)


def counted_pairs(images: PairIds, texts: PairIds) -> Tensor | None:
    """(B, N) bool, False for pairs of different groups, which are neither positive nor negative; None counts all."""
    if images.group is None or texts.group is None:
        return None
    return images.group[:, None] == texts.group


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
        positive: (B, N) bool, see `positive_pairs`.
        counted: (B, N) bool, see `counted_pairs`.
    """
    logits = logit_scale * image_features @ text_features.T + logit_bias  # (B, N)
    pair_loss = -F.logsigmoid(torch.where(positive, logits, -logits))
    if counted is not None:
        pair_loss = pair_loss * counted
    return pair_loss.sum() / len(image_features)
