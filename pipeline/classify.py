"""Classifying files: in batches, going on past the ones that cannot be read.

Shapes: B pictures of a batch, C labels, S picture side.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.errors import BadInputError
from training.bundle import BUNDLE_NAME, Bundle
from training.preprocess import preprocess
from training.specialize import SpecializedEncoder

BATCH = 32
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""What is taken from a folder; a file that is named itself may be called anything."""


@dataclass(frozen=True)
class Prediction:
    label: str
    score: float
    match: float


@dataclass(frozen=True)
class Classified:
    path: Path
    predictions: tuple[Prediction, ...]
    """The best first."""
    none_of_these: float | None
    """Probability that it shows none of the labels; None where the model has no calibration."""

    def as_json(self) -> dict[str, Any]:
        predictions = [asdict(prediction) for prediction in self.predictions]
        return {"picture": str(self.path), "predictions": predictions, "none_of_these": self.none_of_these}


@dataclass(frozen=True)
class Unreadable:
    path: Path
    problem: str

    def as_json(self) -> dict[str, Any]:
        return {"picture": str(self.path), "problem": self.problem}


def picture_files(paths: Iterable[Path]) -> list[Path]:
    """Files as they are given, and in place of a folder the pictures in it and below it, by name.

    Raises:
        BadInputError: a folder without a picture, or a model in place of one.
    """
    files: list[Path] = []
    for path in paths:
        if str(path).startswith("models:") or (path / BUNDLE_NAME).is_file():
            raise BadInputError(f"{path} is a model, and pictures are classified; name the model with --model")
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            raise BadInputError(f"folder {path} holds no file that ends in {', '.join(SUFFIXES)}")
        files += inside
    return files


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


def read_bytes(path: Path) -> bytes | Unreadable:
    """A file, or why it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        return Unreadable(path, f"cannot be read: {error.strerror}")


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
