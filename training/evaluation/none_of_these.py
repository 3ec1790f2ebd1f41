"""Fitting and measuring "none of these": pictures of a task's names against pictures of names that the task does not have.

Half of the names of a set are for fitting and half for measuring, told apart by a hash, so a name is never on both sides.
Tasks are of many sizes, of any names and of names of one topic; the foreign pictures of the latter are of the same topic where
there are such, which is the hard case.  Shapes: N predictions, B pictures of a task.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from infra.errors import BadInputError
from training.bundle import Bundle
from training.evaluation.encode import Job
from training.evaluation.evaluation_set import NO_CLASS, OBJECT, EvaluationSet, Reading
from training.evaluation.measures import auroc, calibration
from training.evaluation.model_on_set import ModelOnSet
from training.evaluation.tasks import LabelSetTask, TaskFamily, TaskKind, draw_tasks
from training.none_of_these import Coefficients, NoneOfThese, NoneOfTheseFigures, Parameters, statistics
from training.score import class_scores

Half = Literal["development", "final"]
WAYS = (2, 5, 10, 25, 50, 100, 200)
"""Numbers of names; those that leave fewer foreign names than own ones are left out."""
KINDS: tuple[TaskKind, ...] = ("random", "same_topic")
MIN_NAMES = 16
"""Of a half: fewer say nothing about other names."""
PICTURES = 40
"""Of the names of a task, and as many foreign ones."""
PER_NAME = 4
NUM_TASKS = 12
"""Of each kind and size."""
L2 = 1e-3
STEPS = 50
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predictions:
    """What a model says about pictures of its names and foreign ones."""

    parameters: Parameters
    match: np.ndarray
    """(N,) of the best label."""
    score: np.ndarray
    """(N,) of the same."""
    num_labels: np.ndarray
    """(N,) int64."""
    foreign: np.ndarray
    """(N,) 1 for a picture of none of the names, 0 otherwise."""
    kind: np.ndarray
    """(N,) of the task."""
    num_tasks: int


def half_of(reading: Reading, half: Half) -> Reading:
    """The same reading with the pictures of one half of its names."""
    chosen = np.array([int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 == (half == "final") for name in reading.names])
    known = reading.class_of_picture != NO_CLASS
    inside = known & chosen[np.where(known, reading.class_of_picture, 0)]
    return replace(reading, class_of_picture=np.where(inside, reading.class_of_picture, NO_CLASS))


def predictions(
    model: ModelOnSet, reading: Reading, *, seed: int, num_tasks: int = NUM_TASKS, progress: Progress | None = None
) -> dict[Parameters, Predictions]:
    """Draw tasks from the pictures of a reading and let the model answer.

    Raises:
        BadInputError: too few names with pictures.
    """
    jobs = list(_jobs(reading, seed=seed, num_tasks=num_tasks))
    encoded = model.encoder.under([Job(model.names[OBJECT][list(job.classes)], np.array(job.pictures)) for job in jobs])
    matches: dict[Parameters, list[np.ndarray]] = {"specialized": [], "neutral": []}
    scores: dict[Parameters, list[np.ndarray]] = {"specialized": [], "neutral": []}
    for number, (job, specialized) in enumerate(zip(jobs, encoded, strict=True)):
        prototypes = model.names[OBJECT][list(job.classes)]
        seen: dict[Parameters, Tensor] = {"specialized": specialized, "neutral": model.encoder.neutral[list(job.pictures)]}
        for parameters, features in seen.items():
            found = class_scores(
                features, prototypes, logit_scale=model.bundle.model.logit_scale, logit_bias=model.bundle.model.logit_bias
            )
            matches[parameters].append(found.match.amax(dim=1).cpu().numpy())
            scores[parameters].append(found.softmax.amax(dim=1).cpu().numpy())
        if progress is not None:
            progress(number + 1, len(jobs))
    sizes = [len(job.pictures) for job in jobs]
    return {
        parameters: Predictions(
            parameters=parameters,
            match=np.concatenate(matches[parameters]),
            score=np.concatenate(scores[parameters]),
            num_labels=np.repeat([len(job.classes) for job in jobs], sizes),
            foreign=np.concatenate([job.foreign for job in jobs]),
            kind=np.repeat([job.kind for job in jobs], sizes),
            num_tasks=len(jobs),
        )
        for parameters in matches
    }


@dataclass(frozen=True)
class _Task:
    kind: TaskKind
    classes: tuple[int, ...]
    pictures: tuple[int, ...]
    foreign: np.ndarray


def _jobs(reading: Reading, *, seed: int, num_tasks: int) -> Iterator[_Task]:
    classes = np.unique(reading.class_of_picture[reading.class_of_picture != NO_CLASS])
    if len(classes) < MIN_NAMES:
        raise BadInputError(f"{len(classes)} names with pictures; to tell none of these apart takes {MIN_NAMES} and more")
    rng = np.random.default_rng((seed, len(classes)))
    for kind in KINDS:
        for num_names in WAYS:
            if 2 * num_names > len(classes):
                continue
            family = TaskFamily(kind=kind, num_names=num_names)
            try:
                tasks = draw_tasks(reading, family, num_tasks=num_tasks, max_pictures=PER_NAME, seed=seed)
            except BadInputError:  # no topic has so many names
                continue
            for task in tasks:
                own = _some(np.array(task.pictures), rng)
                foreign = _foreign(reading, task, len(own), rng)
                flags = np.concatenate([np.zeros(len(own)), np.ones(len(foreign))])
                yield _Task(kind, task.classes, (*own.tolist(), *foreign.tolist()), flags)


def _foreign(reading: Reading, task: LabelSetTask, number: int, rng: np.random.Generator) -> np.ndarray:
    """Pictures of other names; of the same topic first where the task has one."""
    names = reading.class_of_picture
    others = np.flatnonzero((names != NO_CLASS) & ~np.isin(names, task.classes))
    rng.shuffle(others)
    if task.topic is not None:
        near = np.array([reading.topic_of_class[name] == task.topic for name in names[others]], dtype=bool)
        others = np.concatenate([others[near], others[~near]])
    return others[:number]


def _some(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return pictures if len(pictures) <= PICTURES else np.sort(rng.choice(pictures, size=PICTURES, replace=False))


def fit(found: Predictions) -> Coefficients:
    """Logistic regression with a small L2 penalty, by Newton's method; both sides weigh the same."""
    rows = zip(found.match.tolist(), found.num_labels.tolist(), strict=True)
    values, foreign = np.array([statistics(match, number) for match, number in rows]), found.foreign  # (N, 2), (N,)
    mean, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    design = np.concatenate([np.ones((len(values), 1)), (values - mean) / spread], axis=1)  # (N, 3)
    share = np.where(foreign > 0, 0.5 / max(foreign.sum(), 1), 0.5 / max((1 - foreign).sum(), 1))
    penalty = np.diag([0.0, L2, L2])
    weights = np.zeros(design.shape[1])
    for _ in range(STEPS):
        probability = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (share * (probability - foreign)) + penalty @ weights
        curvature = (design * (share * probability * (1 - probability))[:, None]).T @ design + penalty + 1e-9 * np.eye(3)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    slopes = weights[1:] / spread
    return Coefficients(intercept=float(weights[0] - slopes @ mean), best_match=float(slopes[0]), num_labels=float(slopes[1]))


def calibrate(
    bundle: Bundle,
    pictures: EvaluationSet,
    *,
    also_measured_on: Sequence[EvaluationSet] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> NoneOfThese:
    """Fit on the development half of the names; measure on the other half, and on other sets.

    Raises:
        BadInputError: too few names with pictures.
    """
    model = ModelOnSet.of(bundle, pictures, pictures.templates or bundle.templates, {})
    halves: tuple[Half, Half] = ("development", "final")
    development, final = (predictions(model, half_of(pictures.objects, half), seed=seed, progress=progress) for half in halves)
    found = development["specialized"]
    fitted = NoneOfThese(
        bundle_digest=bundle.digest,
        coefficients={name: fit(one) for name, one in development.items()},
        num_labels=(int(found.num_labels.min()), int(found.num_labels.max())),
        fitted_on=f"half of the names of {pictures.name}",
        fitted_on_identity=pictures.identity,
        num_predictions=len(found.foreign),
    )
    measured = [figures(fitted, final["specialized"], pictures=f"other half of {pictures.name}", identity=pictures.identity)]
    for other in also_measured_on:
        there = predictions(ModelOnSet.of(bundle, other, other.templates or bundle.templates, {}), other.objects, seed=seed)
        measured.append(figures(fitted, there["specialized"], pictures=other.name, identity=other.identity))
    return fitted.rebuilt(figures=tuple(measured))


def probabilities(calibrated: NoneOfThese, found: Predictions) -> np.ndarray:
    """(N,) of predictions."""
    rows = zip(found.match.tolist(), found.num_labels.tolist(), strict=True)
    return np.array([calibrated.probability(match, num_labels=number, parameters=found.parameters) for match, number in rows])


def figures(calibrated: NoneOfThese, found: Predictions, *, pictures: str, identity: str) -> NoneOfTheseFigures:
    """Args: found: of pictures that were not fitted on."""
    said = probabilities(calibrated, found)
    foreign = found.foreign > 0
    return NoneOfTheseFigures(
        pictures=pictures,
        identity=identity,
        num_tasks=found.num_tasks,
        num_predictions=len(said),
        auroc=auroc(said[foreign], said[~foreign]),
        auroc_of_match=auroc(-found.match[foreign], -found.match[~foreign]),
        ece=calibration(said, found.foreign).ece,
    )
