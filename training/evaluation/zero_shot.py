"""Zero-shot classification on pictures the model never saw: the arms of `arms.py` side by side on the same tasks.

Pictures are decoded once and encoded once under the neutral parameters, names are encoded once; what is left for each task is
its own parameters and the other task's.  Shapes: M pictures, B pictures of a task, C names, D embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from infra.config import StrictModel, content_hash
from infra.errors import BadInputError
from training.bounds import MAX_SET_SIZE
from training.bundle import Bundle
from training.evaluation.arms import READ_AS_DEPLOYED, Arm, free_tricks
from training.evaluation.evaluation_set import OBJECT, EvaluationSet, ReadingConfig
from training.evaluation.family_scores import DrawnFamily, FamilyScores
from training.evaluation.model_on_set import ModelOnSet, best_names
from training.evaluation.result import ShownPrediction, SkippedFamily, ZeroShotResult
from training.evaluation.retrieval import retrieval_result
from training.evaluation.tasks import TaskFamily, TaskKind, draw_tasks, reread
from training.preprocess import PreprocessConfig

Progress = Callable[[int, int], None]


class EvaluationConfig(StrictModel):
    """Which tasks are drawn, and what else is measured."""

    ways: tuple[PositiveInt, ...] = (10, 50)
    """Numbers of names in a task; the first one decides promotion."""
    kinds: tuple[TaskKind, ...] | None = None
    """Kinds of tasks: `random` names; names of the `same_topic`; `all` names with every picture, as one task; one
    name `held_out_among_known` ones of its topic, which come from other files (`names_from`, or `--names-from`).  None: random
    and same topic; where a set has class names only, all and random.  The first one decides promotion."""
    distractor_share: float = Field(default=0.0, ge=0, lt=1)
    """Above 0, every family is drawn once more with this share of names that have no picture in the task."""
    num_tasks: PositiveInt = 50
    """Tasks of each family."""
    max_pictures: PositiveInt = 10
    """Pictures of one name in a task; where there are more, some are drawn.  Kind `all` takes every picture."""
    readings: dict[str, ReadingConfig] = Field(default_factory=dict)
    """Further ways to name the same pictures, such as `{style: {column: source}}`."""
    recall_at: tuple[PositiveInt, ...] = (1, 5, 10)
    """Retrieval counts as right within so many answers; empty leaves retrieval out."""
    num_shown: NonNegativeInt = 24
    """Pictures kept with their predictions, for the report."""
    seed: NonNegativeInt = 0


def evaluate_zero_shot(
    bundles: Sequence[Bundle],
    pictures: EvaluationSet,
    config: EvaluationConfig,
    *,
    twins: Sequence[Bundle] = (),
    templates: Sequence[str] | None = None,
    progress: Progress,
) -> ZeroShotResult:
    """Classify the pictures of drawn tasks.

    Args:
        bundles: one model, or the seeds of one recipe.
        twins: for each model its SigLIP twin, or none.
        templates: in place of those of the set, or else of the model.
        progress: called with (tasks done, tasks in all).

    Raises:
        BadInputError: too few concepts for the first family, or a picture or a name cannot be used.
    """
    if twins and len(twins) != len(bundles):
        raise BadInputError(f"{len(bundles)} models and {len(twins)} twins: give each model its twin, in the same order")
    families, skipped = draw_families(pictures, config)
    scores = [FamilyScores(drawn) for drawn in families]
    total = len(bundles) * sum(len(drawn.tasks) for drawn in families)
    done = 0
    images: dict[PreprocessConfig, np.ndarray] = {}
    found_ranks: dict[Arm, list[tuple[np.ndarray, np.ndarray]]] = {}
    shown: list[ShownPrediction] = []
    chosen = tuple(templates or pictures.templates or bundles[0].templates)
    for number, bundle in enumerate(bundles):
        model = ModelOnSet.of(bundle, pictures, chosen, images)
        twin = ModelOnSet.of(twins[number], pictures, chosen, images) if twins else None
        for family_scores in scores:
            for task, own in _score(family_scores, model, twin, number=number):
                if number == 0 and family_scores is scores[0] and len(shown) < config.num_shown:
                    shown += _shown(model, family_scores.drawn, task, own[: config.num_shown - len(shown)])
                done += 1
                progress(done, total)
        if config.recall_at and pictures.captions is not None:
            found_ranks.setdefault("neutral", []).append(model.retrieval_ranks(pictures.captions))
            if twin is not None:
                found_ranks.setdefault("twin", []).append(twin.retrieval_ranks(pictures.captions))
    return ZeroShotResult(
        bundle_digests=tuple(bundle.digest for bundle in bundles),
        twin_digests=tuple(twin.digest for twin in twins),
        dataset=pictures.name,
        dataset_identity=pictures.identity,
        headline_tasks=headline_tasks(pictures, config),
        templates=chosen,
        num_pictures=len(pictures),
        num_concepts=pictures.objects.num_own,
        families=tuple(one.result(seed=config.seed) for one in scores),
        skipped=tuple(skipped),
        retrieval={
            arm: retrieval_result(found, recall_at=config.recall_at, seed=config.seed) for arm, found in found_ranks.items()
        },
        shown=tuple(shown),
    )


def headline_tasks(pictures: EvaluationSet, config: EvaluationConfig) -> str:
    """Identity of the tasks that decide promotion: their pictures, and all that decides their draw."""
    first = _families(pictures, config)[0]
    draw = {"num_tasks": config.num_tasks, "max_pictures": config.max_pictures, "seed": config.seed}
    return content_hash({"pictures": pictures.identity, "family": first.model_dump(mode="json"), **draw})


def draw_families(pictures: EvaluationSet, config: EvaluationConfig) -> tuple[list[DrawnFamily], list[SkippedFamily]]:
    """The families of a configuration with their tasks, and those that the pictures do not allow, with the reason.

    Raises:
        BadInputError: the first one, which decides promotion, is not possible.
    """
    drawn: list[DrawnFamily] = []
    skipped: list[SkippedFamily] = []
    for family in _families(pictures, config):
        try:
            drawn.append(_draw(pictures, family, config))
        except BadInputError as error:
            if not drawn:
                raise
            skipped.append(SkippedFamily(family=family, reason=str(error)))
    return drawn, skipped


def _families(pictures: EvaluationSet, config: EvaluationConfig) -> list[TaskFamily]:
    kinds = config.kinds or (("random", "same_topic") if pictures.captions is not None else ("all", "random"))
    found: list[TaskFamily] = []
    for share in (0.0, config.distractor_share) if config.distractor_share else (0.0,):
        for kind in kinds:
            if kind == "all":
                found += [] if share else [TaskFamily(kind=kind, num_names=pictures.objects.num_own)]
                continue
            if kind == "held_out_among_known" and share:  # all names but one have no picture as it is
                continue
            for num_names in config.ways:
                num_distractors = min(max(1, round(share * num_names)), num_names - 1) if share else 0
                if num_distractors or not share:  # a task of one name has no room for another
                    found.append(TaskFamily(kind=kind, num_names=num_names, num_distractors=num_distractors))
    further = [TaskFamily(kind="random", num_names=len(one.names), reading=one.name) for one in pictures.further]
    return found + further


def _draw(pictures: EvaluationSet, family: TaskFamily, config: EvaluationConfig) -> DrawnFamily:
    if family.num_names > MAX_SET_SIZE:
        raise BadInputError(f"{family.num_names:,} names; at most {MAX_SET_SIZE:,} fit into one task")
    settings = {"num_tasks": config.num_tasks, "max_pictures": config.max_pictures, "seed": config.seed}
    if family.reading == OBJECT:
        tasks = draw_tasks(pictures.objects, family, **settings)
        swaps = [*tasks[-1:], *tasks[:-1]]
        same = all(set(task.classes) == set(other.classes) for task, other in zip(tasks, swaps, strict=True))
        return DrawnFamily(family, tasks, [] if same else swaps)
    if family.num_names < 2:
        raise BadInputError(f"reading {family.reading!r} gives the pictures {family.num_names} names; a task needs two")
    reading = next(one for one in pictures.further if one.name == family.reading)
    by_object = draw_tasks(pictures.objects, TaskFamily(num_names=config.ways[0]), **settings)
    pairs = [(reread(task, reading), task) for task in by_object]
    pairs = [(task, other) for task, other in pairs if task.pictures]
    if not pairs:
        raise BadInputError(f"none of the pictures drawn has a name in the reading {family.reading!r}")
    # the same pictures, asked for what they show: the very other question
    return DrawnFamily(family, [task for task, _ in pairs], [other for _, other in pairs])


def _score(scores: FamilyScores, model: ModelOnSet, twin: ModelOnSet | None, *, number: int) -> Iterator[tuple[int, Tensor]]:
    """Fill in what one model and its twin say on every task; yields each task and its features (B, D) when it is done.

    The free tricks are played on the twin, or on the neutral parameters where there is none.
    """
    drawn, reading = scores.drawn, scores.drawn.family.reading

    def predict(arm: Arm, task: int, features: Tensor, prototypes: Tensor) -> np.ndarray:
        places, cosine = best_names(features, prototypes)
        scores.add_prediction(arm, model=number, task=task, places=places)
        if arm in READ_AS_DEPLOYED:
            by = twin if arm == "twin" and twin is not None else model
            scores.add_match(arm, task=task, places=places, match=by.match(cosine))
        return cosine

    def predict_plainly(base: Literal["neutral", "twin"], by: ModelOnSet, task: int, *, tricks: bool) -> np.ndarray:
        features = by.encoder.neutral[list(drawn.tasks[task].pictures)]
        prototypes = by.prototypes(drawn.tasks[task], reading)
        if tricks:
            for arm, moved in free_tricks(base, prototypes).items():
                predict(arm, task, features, moved)
        return predict(base, task, features, prototypes)

    for seen in model.see(drawn):
        task = drawn.tasks[seen.task]
        prototypes = model.prototypes(task, reading)
        inside: dict[Arm, np.ndarray] = {
            "specialized": predict("specialized", seen.task, seen.own, prototypes),
            "neutral": predict_plainly("neutral", model, seen.task, tricks=twin is None),
        }
        if twin is not None:
            inside["twin"] = predict_plainly("twin", twin, seen.task, tricks=True)
        if seen.swapped_task is not None and seen.foreign is not None:
            other = drawn.tasks[seen.swapped_task]
            predict("swapped", seen.swapped_task, seen.foreign, model.prototypes(other, reading))
            if reading == OBJECT:  # pictures of another task, seen by this one: it has none of their names
                strange = [row for row, target in enumerate(other.targets) if other.classes[target] not in task.classes]
                pictures = [other.pictures[row] for row in strange]
                outside: dict[Arm, np.ndarray] = {
                    "specialized": best_names(seen.foreign[strange], prototypes)[1],
                    "neutral": best_names(model.encoder.neutral[pictures], prototypes)[1],
                }
                if twin is not None:
                    outside["twin"] = best_names(twin.encoder.neutral[pictures], twin.prototypes(task, reading))[1]
                for arm, cosine in outside.items():
                    scores.add_none_of_these(arm, model=number, task=seen.task, inside=inside[arm], outside=cosine)
        yield seen.task, seen.own


def _shown(model: ModelOnSet, drawn: DrawnFamily, task: int, features: Tensor) -> list[ShownPrediction]:
    """Predictions for people; args: features (B, D) of the first pictures of a task."""
    chosen, names = drawn.tasks[task], model.readings[drawn.family.reading].names
    cosine = features @ model.prototypes(chosen, drawn.family.reading).T
    best = (model.bundle.model.logit_scale * cosine).softmax(dim=1).max(dim=1)
    return [
        ShownPrediction(
            sample=picture, truth=names[chosen.classes[target]], predicted=names[chosen.classes[place]], score=min(value, 1.0)
        )
        for picture, target, place, value in zip(
            chosen.pictures, chosen.targets, best.indices.tolist(), best.values.tolist(), strict=False
        )
    ]
