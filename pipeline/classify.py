"""Classifying files: in batches, going on past the ones that cannot be read.

Shapes: B pictures of a batch, C labels, S picture side.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from infra.errors import BadInputError
from pipeline.picture_files import Classified, Prediction, Unreadable, read_bytes
from training.bundle import Bundle
from training.preprocess import preprocess
from training.specialize import SpecializedEncoder

BATCH = 32


def classify_files(
    bundle: Bundle, encoder: SpecializedEncoder, paths: Sequence[Path], *, top_k: int
) -> Iterator[Classified | Unreadable]:
    """One result per file, in their order; memory holds one batch."""
    waiting = iter(paths)
    while batch := list(islice(waiting, BATCH)):
        read = [_read(path, bundle) for path in batch]
        images = [picture for picture in read if isinstance(picture, np.ndarray)]
        predictions = iter(_predict(bundle, encoder, images, top_k=top_k) if images else [])
        for path, picture in zip(batch, read, strict=True):
            if isinstance(picture, str):
                yield Unreadable(path, picture)
                continue
            best = next(predictions)
            none_of_these = None
            if bundle.none_of_these is not None:
                none_of_these = bundle.none_of_these.probability(
                    best[0].match, num_labels=len(encoder.task.labels), parameters="specialized"
                )
            yield Classified(path, best, none_of_these)


def _read(path: Path, bundle: Bundle) -> np.ndarray | str:
    """(3, S, S) float32, or what is wrong."""
    data = read_bytes(path)
    if isinstance(data, Unreadable):
        return data.problem
    try:
        return preprocess(data, bundle.preprocess)
    except BadInputError as error:
        return str(error)


def _predict(
    bundle: Bundle, encoder: SpecializedEncoder, images: Sequence[np.ndarray], *, top_k: int
) -> list[tuple[Prediction, ...]]:
    labels = encoder.task.labels
    scores = encoder.scores(bundle, torch.from_numpy(np.stack(images)))  # (B, C)
    best = scores.softmax.topk(min(top_k, len(labels)))
    return [
        tuple(Prediction(labels[place], softmax[place].item(), match[place].item()) for place in places)
        for places, softmax, match in zip(best.indices.tolist(), scores.softmax, scores.match, strict=True)
    ]
