"""One model with everything of it that the tasks of a set share: features of the pictures and of the names.

Shapes: M pictures, B pictures of a task, C names, D embedding, T distinct captions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.bundle import Bundle
from training.evaluation.encode import Job, PictureEncoder
from training.evaluation.evaluation_set import OBJECT, EvaluationSet, Reading, decode_into, space_for
from training.evaluation.family_scores import DrawnFamily
from training.evaluation.retrieval import ranks
from training.evaluation.tasks import LabelSetTask
from training.preprocess import PreprocessConfig
from training.specialize import encode_labels, encode_texts

PICTURES_AT_ONCE = 8192


class SeenTask(NamedTuple):
    """Features under the parameters made from the names of a task."""

    task: int
    own: Tensor
    """(B, D) of its own pictures."""
    swapped_task: int | None
    """The task whose pictures were seen under the same parameters, as a control; None where there is none."""
    foreign: Tensor | None
    """(B', D) of that task's pictures."""


@dataclass(frozen=True)
class ModelOnSet:
    bundle: Bundle
    encoder: PictureEncoder
    readings: dict[str, Reading]
    names: dict[str, Tensor]
    """(C, D) of all names of each reading."""

    @staticmethod
    def of(
        bundle: Bundle, pictures: EvaluationSet, templates: Sequence[str], images: dict[PreprocessConfig, np.ndarray]
    ) -> "ModelOnSet":
        """Args: images: decoded pictures by preprocessing; what is missing is decoded and kept there."""
        known = images.get(bundle.preprocess)
        space = space_for(pictures, bundle.preprocess) if known is None else known
        encoder = PictureEncoder(bundle, space)
        readings = {reading.name: reading for reading in (pictures.objects, *pictures.further)}
        names = {name: encode_labels(bundle, reading.names, templates) for name, reading in readings.items()}
        if known is None:
            encoder.keep_neutral(decode_into(space, pictures, bundle.preprocess, then=encoder.encode_neutral))
        images[bundle.preprocess] = space
        return ModelOnSet(bundle, encoder, readings, names)

    def prototypes(self, task: LabelSetTask, reading: str) -> Tensor:
        """(C, D) of the names of a task."""
        return self.names[reading][list(task.classes)]

    def see(self, drawn: DrawnFamily) -> Iterator[SeenTask]:
        """Every task of a family under its own parameters, and every task once under those of another."""
        reading = drawn.family.reading
        if reading != OBJECT:
            yield from self._see_reread(drawn)
            return
        jobs, swapped = [], []
        for number, task in enumerate(drawn.tasks):
            # the parameters of a task serve its own pictures and those of the task that they are swapped into
            into = (number + 1) % len(drawn.tasks) if drawn.swaps else None
            both = task.pictures if into is None else (*task.pictures, *drawn.tasks[into].pictures)
            jobs.append(Job(self._conditioning(task, reading), np.array(both)))
            swapped.append(into)
        for number, features in enumerate(self.encoder.under(jobs)):
            size, into = len(drawn.tasks[number].pictures), swapped[number]
            yield SeenTask(number, features[:size], into, None if into is None else features[size:])

    def _see_reread(self, drawn: DrawnFamily) -> Iterator[SeenTask]:
        """All tasks have the same names: each picture is seen once under them."""
        pictures = np.unique(np.concatenate([np.array(task.pictures) for task in drawn.tasks]))
        (own,) = self.encoder.under([Job(self._conditioning(drawn.tasks[0], drawn.family.reading), pictures)])
        others = [
            Job(self._conditioning(swap, OBJECT), np.array(task.pictures))
            for task, swap in zip(drawn.tasks, drawn.swaps, strict=True)
        ]
        for number, foreign in enumerate(self.encoder.under(others)):
            rows = np.searchsorted(pictures, np.array(drawn.tasks[number].pictures))
            yield SeenTask(number, own[torch.from_numpy(rows)], number, foreign)

    def _conditioning(self, task: LabelSetTask, reading: str) -> Tensor:
        """(C, D) of the distinct names of a task, which is what a hypernetwork is given."""
        names = self.readings[reading].names
        first = {names[number]: number for number in reversed(task.classes)}
        return self.names[reading][[number for number in task.classes if first[names[number]] == number]]

    def match(self, cosine: np.ndarray) -> np.ndarray:
        """SigLIP's own sigmoid of a cosine."""
        model = self.bundle.model
        logits = model.logit_scale.item() * cosine + model.logit_bias.item()
        found: np.ndarray = 1 / (1 + np.exp(-logits))
        return found

    def retrieval_ranks(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `retrieval.ranks`, under the neutral parameters."""
        distinct = list(dict.fromkeys(captions))
        number_of = {caption: number for number, caption in enumerate(distinct)}
        own = torch.tensor([number_of[caption] for caption in captions], device=self.encoder.neutral.device)
        return ranks(self.encoder.neutral, encode_texts(self.bundle, distinct), own)


@torch.no_grad()
def best_names(features: Tensor, prototypes: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(B, D), (C, D) -> place of the best name of each picture, and its cosine."""
    places, cosines = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.float32)]
    for part in features.split(PICTURES_AT_ONCE):  # pictures times names can be far more than either
        best = (part @ prototypes.T).max(dim=1)
        places.append(best.indices.cpu().numpy())
        cosines.append(best.values.cpu().numpy())
    return np.concatenate(places), np.concatenate(cosines)
