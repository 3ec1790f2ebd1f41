"""The texts of a contrastive batch: its unique captions, and the names that its conditioning sets are made of.

Shapes: N samples, T unique captions, M names in sets, L tokens, G groups, C names in a set, D embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class BatchTexts:
    """The unique captions of a batch, those whose names are in a set first, and how names are made of them."""

    tokens: Tensor
    """(T, L)."""
    caption_index: Tensor
    """(N,) rows of `tokens`."""
    num_conditioning: int
    """How many of the captions say something in a set."""
    number: Tensor
    """(N,) for each value of `name_index`, its number 0 to M - 1 among the names in sets; -1 in none."""
    name_number: Tensor
    """(N,) the same for each sample."""
    said_by: Tensor
    """Captions of the samples of name 0, then of name 1, and so on; each below `num_conditioning`."""
    starts: Tensor
    """(M,) where each name begins in `said_by`."""

    def mean_by_name(self, caption_features: Tensor) -> Tensor:
        """(num_conditioning, D) -> (M, D) unit vectors.

        A name is the renormalized mean over the captions that its samples drew, as a label is the mean over its templates when
        the model is used; so no text is encoded for conditioning alone.
        """
        return F.normalize(F.embedding_bag(self.said_by, caption_features, self.starts, mode="mean"), dim=-1)


def arrange_texts(captions: Tensor, *, caption_index: Tensor, name_index: Tensor, used: Tensor) -> BatchTexts:
    """Number names and captions anew, so that those that are used come first.

    Args:
        captions: (T, L) unique captions.
        caption_index: (N,) rows of `captions`.
        name_index: (N,) equal for samples of the same name.
        used: of any shape, the values of `name_index` that are in a set.
    """
    device = captions.device
    names = torch.unique(used.to(device))
    number = torch.full((len(name_index),), -1, device=device)
    number[names] = torch.arange(len(names), device=device)
    name_number = number[name_index]  # (N,)
    by_name = torch.argsort(name_number, stable=True)[int((name_number < 0).sum()) :]  # samples whose name is in a set
    conditioning = torch.zeros(len(captions), dtype=torch.bool, device=device)
    conditioning[caption_index[by_name]] = True
    rows = torch.argsort(~conditioning, stable=True)  # (T,) captions, those that say something first
    place = torch.argsort(rows)
    caption_index = place[caption_index]
    return BatchTexts(
        tokens=captions[rows],
        caption_index=caption_index,
        num_conditioning=int(conditioning.sum()),
        number=number,
        name_number=name_number,
        said_by=caption_index[by_name],
        starts=torch.searchsorted(name_number[by_name], torch.arange(len(names), device=device)),
    )
