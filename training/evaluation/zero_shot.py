"""Zero-shot classification on pictures the model never saw: specialized and neutral side by side, with a control.

Three readings of the same model on the same tasks:
    specialized  parameters generated from the task's own names: what is deployed
    neutral      the base parameters, the same for every task
    swapped      parameters generated from another task's names: how much of a gain is not about the names
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from infra.config import StrictModel, content_hash
from training.bundle import Bundle
from training.evaluation.tasks import LabelSetTask, draw_tasks
from training.model.parameter_delta import GroupDelta
from training.preprocess import preprocess
from training.shard_reader import ShardReader
from training.specialize import encode_labels

Reading = Literal["specialized", "neutral", "swapped"]
READINGS: tuple[Reading, ...] = ("specialized", "neutral", "swapped")
IMAGE_BATCH = 256
NUM_RESAMPLES = 2000


class EvaluationConfig(StrictModel):
    """Which tasks are drawn."""

    ways: tuple[PositiveInt, ...] = (10, 50)
    """Numbers of names in a task; the first one decides promotion."""
    num_tasks: PositiveInt = 50
    """Tasks of each size."""
    num_shown: NonNegativeInt = 24
    """Pictures kept with their predictions, for the report."""
    seed: NonNegativeInt = 0


class Accuracy(StrictModel):
    """Mean over tasks, with a 95 % interval from a bootstrap over tasks."""

    mean: float
    low: float
    high: float


class WayResult(StrictModel):
    num_ways: int
    chance: float
    num_tasks: int
    num_predictions: int
    num_pictures: int
    """Distinct pictures among the predictions."""
    accuracy: dict[Reading, Accuracy]


class ShownPrediction(StrictModel):
    """One picture of the first tasks, for people to look at."""

    sample: int
    """Number in the evaluation shards."""
    truth: str
    predicted: str
    score: float = Field(ge=0, le=1)


class ZeroShotResult(StrictModel):
    """`evaluation.json`."""

    schema_version: Literal[1] = 1
    bundle_digest: str
    headline_tasks: str
    """SHA-256 of the pictures and the draw of the first task size: two models are compared where it is the same only."""
    num_pictures: int
    num_concepts: int
    ways: tuple[WayResult, ...]
    shown: tuple[ShownPrediction, ...]

    @property
    def headline(self) -> WayResult:
        return self.ways[0]


@dataclass(frozen=True)
class EvaluationPictures:
    images: Tensor
    """(M, 3, S, S)."""
    concept_of_picture: list[int]
    names: list[str]
    """Of each concept."""


def evaluate_zero_shot(
    bundle: Bundle, reader: ShardReader, config: EvaluationConfig, *, progress: Callable[[int, int], None]
) -> ZeroShotResult:
    """Classify the pictures of drawn tasks.

    Args:
        reader: evaluation shards; pictures without a concept count as a concept of their own.
        progress: called with (tasks done, tasks in all).

    Raises:
        BadInputError: too few concepts for a task.
    """
    pictures = load_pictures(reader, bundle)
    neutral_features = _encode(bundle, pictures.images, None)
    name_features = encode_labels(bundle, pictures.names, bundle.templates)
    results: list[WayResult] = []
    shown: list[ShownPrediction] = []
    done, total = 0, config.num_tasks * len(config.ways)
    for num_ways in config.ways:
        tasks = draw_tasks(pictures.concept_of_picture, num_ways=num_ways, num_tasks=config.num_tasks, seed=config.seed)
        correct: dict[Reading, list[float]] = {reading: [] for reading in READINGS}
        for number, task in enumerate(tasks):
            scores = task_scores(
                bundle, pictures.images, task, other=tasks[number - 1], neutral=neutral_features, names=name_features
            )
            targets = torch.tensor(task.targets)
            for reading, values in scores.items():
                correct[reading].append((values.argmax(dim=1) == targets).float().mean().item())
            if num_ways == config.ways[0] and len(shown) < config.num_shown:
                shown += _shown(task, (bundle.model.logit_scale * scores["specialized"]).softmax(dim=1), pictures.names)
            done += 1
            progress(done, total)
        results.append(
            WayResult(
                num_ways=num_ways,
                chance=1 / num_ways,
                num_tasks=len(tasks),
                num_predictions=sum(len(task.pictures) for task in tasks),
                num_pictures=len({picture for task in tasks for picture in task.pictures}),
                accuracy={reading: _interval(values, seed=config.seed) for reading, values in correct.items()},
            )
        )
    return ZeroShotResult(
        bundle_digest=bundle.digest,
        headline_tasks=headline_tasks(reader, config),
        num_pictures=len(reader),
        num_concepts=len(pictures.names),
        ways=tuple(results),
        shown=tuple(shown[: config.num_shown]),
    )


def headline_tasks(reader: ShardReader, config: EvaluationConfig) -> str:
    """Identity of the tasks that decide promotion: their pictures, their size, how many, and the seed of the draw."""
    shards = [shard.sha256 for shard in reader.manifest.shards]
    return content_hash({"shards": shards, "ways": config.ways[0], "num_tasks": config.num_tasks, "seed": config.seed})


def load_pictures(reader: ShardReader, bundle: Bundle) -> EvaluationPictures:
    """Decode all evaluation pictures, preprocessed as they will be when served."""
    number_of: dict[str, int] = {}
    names: list[str] = []
    images, concepts = [], []
    for index in range(len(reader)):
        picture, record = reader[index]
        concept = record.concept or f"uid:{record.uid}"
        if concept not in number_of:
            number_of[concept] = len(names)
            names.append(record.captions[0])
        concepts.append(number_of[concept])
        images.append(torch.from_numpy(preprocess(picture, bundle.preprocess)))
    return EvaluationPictures(torch.stack(images), concepts, names)


@torch.no_grad()
def task_scores(
    bundle: Bundle, images: Tensor, task: LabelSetTask, *, other: LabelSetTask, neutral: Tensor, names: Tensor
) -> dict[Reading, Tensor]:
    """Cosine of each picture of a task with each of its names, (B, C), by reading.

    Args:
        images: (M, 3, S, S) all pictures.
        other: the task whose names make the swapped parameters.
        neutral: (M, D) features of all pictures under the neutral parameters.
        names: (number of concepts, D) features of all names.
    """
    rows = list(task.pictures)
    text_features = names[list(task.concepts)]  # (C, D)
    deltas = torch.cat([bundle.model.generate(names[list(chosen.concepts)][None]) for chosen in (task, other)])  # (2, P)
    return {
        "specialized": _encode(bundle, images[rows], deltas[:1]) @ text_features.T,
        "neutral": neutral[rows] @ text_features.T,
        "swapped": _encode(bundle, images[rows], deltas[1:]) @ text_features.T,
    }


@torch.no_grad()
def _encode(bundle: Bundle, images: Tensor, delta: Tensor | None) -> Tensor:
    """(B, 3, S, S) -> (B, D), in batches of bounded memory."""
    group = None if delta is None else GroupDelta(delta)
    return torch.cat([bundle.model.encode_image(batch, group) for batch in images.split(IMAGE_BATCH)])


def _shown(task: LabelSetTask, scores: Tensor, names: list[str]) -> list[ShownPrediction]:
    """Args: scores (B, C), softmax over the names."""
    labels = [names[concept] for concept in task.concepts]
    best = scores.max(dim=1)
    return [
        ShownPrediction(sample=picture, truth=labels[target], predicted=labels[place], score=value)
        for picture, target, place, value in zip(
            task.pictures, task.targets, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def _interval(values: list[float], *, seed: int) -> Accuracy:
    found = np.asarray(values)
    rng = np.random.default_rng((seed, len(values)))
    means = found[rng.integers(len(found), size=(NUM_RESAMPLES, len(found)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Accuracy(mean=float(found.mean()), low=float(low), high=float(high))
