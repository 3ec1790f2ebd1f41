"""From features to scores: what a classifier says about a picture.

Shapes: B images, C labels, D embedding.
"""

from typing import NamedTuple

from torch import Tensor


class Scores(NamedTuple):
    softmax: Tensor
    """(B, C): how the labels share the picture; sums to one."""
    match: Tensor
    """(B, C): SigLIP's own sigmoid, each label for itself: low everywhere means "none of these"."""


def class_scores(image_features: Tensor, text_features: Tensor, *, logit_scale: Tensor, logit_bias: Tensor) -> Scores:
    """Score every label for every picture.

    Args:
        image_features: (B, D) unit vectors.
        text_features: (C, D) unit vectors; or (B, C, D) when each picture has labels of its own.
        logit_scale: () already exponentiated.
        logit_bias: ().
    """
    if text_features.ndim == 3:
        cosine = (text_features @ image_features[:, :, None]).squeeze(-1)
    else:
        cosine = image_features @ text_features.T
    logits = logit_scale * cosine
    return Scores(softmax=logits.softmax(dim=-1), match=(logits + logit_bias).sigmoid())
