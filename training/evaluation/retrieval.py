"""Pictures found by captions and captions by pictures, with features that depend on no names.

Shapes: M pictures, T distinct captions, D embedding.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from training.evaluation.measures import estimates
from training.evaluation.result import RetrievalResult

PICTURES_AT_ONCE = 1024


def ranks(image_features: Tensor, text_features: Tensor, caption_of_picture: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(M,) and (T,): how many wrong answers score at least as high as the right one; for a caption, as its best picture.

    Args:
        image_features: (M, D) unit vectors.
        text_features: (T, D) of distinct captions, each with a picture.
        caption_of_picture: (M,) int64.
    """
    num_texts = len(text_features)
    own = (image_features * text_features[caption_of_picture]).sum(dim=1)  # (M,)
    best = torch.full((num_texts,), -torch.inf, device=own.device).scatter_reduce(0, caption_of_picture, own, "amax")
    of_pictures = []
    of_texts = torch.zeros(num_texts, dtype=torch.int64, device=own.device)
    for start in range(0, len(image_features), PICTURES_AT_ONCE):
        rows = slice(start, start + PICTURES_AT_ONCE)
        cosine = image_features[rows] @ text_features.T
        cosine.scatter_(1, caption_of_picture[rows, None], -torch.inf)  # what is right is no wrong answer
        of_pictures.append((cosine >= own[rows, None]).sum(dim=1))
        of_texts += (cosine >= best).sum(dim=0)
    return torch.cat(of_pictures).cpu().numpy(), of_texts.cpu().numpy()


def retrieval_result(found: Sequence[tuple[np.ndarray, np.ndarray]], *, recall_at: Sequence[int], seed: int) -> RetrievalResult:
    """Args: found: what `ranks` gave for each model."""
    of_pictures = np.stack([pictures for pictures, _ in found])  # (S, M)
    of_texts = np.stack([texts for _, texts in found])  # (S, T)

    def recalls(rank: np.ndarray) -> Mapping[int, np.ndarray]:
        return {k: (rank < k).astype(float) for k in recall_at}

    return RetrievalResult(
        num_pictures=of_pictures.shape[1],
        num_captions=of_texts.shape[1],
        image_to_text=estimates(recalls(of_pictures), seed=seed),
        text_to_image=estimates(recalls(of_texts), seed=seed),
    )
