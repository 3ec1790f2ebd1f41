"""CLIP's byte-pair tokenizer.  Its vocabulary lies inside the package that implements it: nothing is fetched."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from instant_clip_tokenizer import Tokenizer as ClipBytePairs
from torch import Tensor

CONTEXT_LENGTH = 77
START_OF_TEXT = 49406
END_OF_TEXT = 49407

MAX_CHARACTERS = 10_000
"""Of a text that are read.  The context holds far fewer, and the time that one long word takes grows with its square: a million
letters without a space would take a minute, in which nothing else in the process runs."""

MAX_BUCKETS, MIN_BUCKET = 4, 32

GOLDEN_TOKENS = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "Crème brûlée, 2nd": [49406, 1075, 12138, 614, 711, 127, 119, 75, 13489, 267, 273, 1764, 49407],
}
"""What the vocabulary must give; stored with every bundle, so that another vocabulary is noticed when it is loaded."""


class Tokenizer:
    """Texts -> token ids, zero-padded after the end of text."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(T, L) int64 with L the longest of these texts; longer than the context is cut, the end of text kept."""
        if not texts:
            return torch.zeros(0, 2, dtype=torch.int64)
        return cut_to_longest(self.padded(texts))

    def padded(self, texts: Sequence[str]) -> Tensor:
        """(T, 77) int64: the same length for every batch, for exchange between ranks."""
        read = [text[:MAX_CHARACTERS] for text in texts]
        ids: np.ndarray = _byte_pairs().tokenize_batch(read, context_length=CONTEXT_LENGTH)
        return torch.from_numpy(ids.astype(np.int64))

    def num_tokens(self, text: str) -> int:
        """Tokens of what is read of a text, before it is cut to the context; start and end of text included."""
        return len(_byte_pairs().encode(text[:MAX_CHARACTERS])) + 2


@cache
def _byte_pairs() -> ClipBytePairs:
    return ClipBytePairs()  # building the merge table takes half a second: once a process


def cut_to_longest(tokens: Tensor) -> Tensor:
    """(T, L) -> (T, L') without the columns that are padding in every row."""
    lengths = (tokens == END_OF_TEXT).int().argmax(dim=1) + 1
    return tokens[:, : int(lengths.max())]


def length_buckets(tokens: Tensor) -> tuple[Tensor, ...]:
    """(T, L) -> rows of texts of similar length, every row in one bucket, the short ones first.

    Captions have a long tail: cut to its own longest, each bucket leaves out the padding that the longest of all would cause.
    The number of buckets depends on T alone, because ranks that share parameters must pass through the text encoder equally
    often.
    """
    lengths = (tokens == END_OF_TEXT).int().argmax(dim=1)
    count = min(MAX_BUCKETS, max(1, len(tokens) // MIN_BUCKET))
    return torch.tensor_split(torch.argsort(lengths, stable=True), count)
