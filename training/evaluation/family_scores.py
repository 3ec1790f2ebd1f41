"""What is kept of the predictions on the tasks of one family, over arms and models, and the figures made of it.

Shapes: S models, U units of the bootstrap, B pictures of a task.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from training.evaluation.arms import ARMS, COMPARED, Arm
from training.evaluation.measures import (
    Calibration,
    Estimate,
    auroc,
    calibration,
    estimates,
    recall_of_classes,
)
from training.evaluation.result import Difference, FamilyResult, TopicResult
from training.evaluation.tasks import LabelSetTask, TaskFamily

Value = TypeVar("Value")


@dataclass(frozen=True)
class DrawnFamily:
    """A family with its tasks."""

    family: TaskFamily
    tasks: Sequence[LabelSetTask]
    swaps: Sequence[LabelSetTask]
    """For each task, the one whose names make the swapped parameters; empty where there is no other."""


@dataclass
class FamilyScores:
    """Filled task by task, model after model."""

    drawn: DrawnFamily
    places: dict[Arm, list[dict[int, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))
    """Of each model, by task: the predicted place of each picture, (B,)."""
    matches: dict[Arm, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))
    """(B,) `match` of the predicted name, and whether it is right."""
    told_apart: dict[Arm, list[dict[int, float]]] = field(default_factory=lambda: defaultdict(list))
    """Of each model, by task: area under the curve of "none of these"."""

    def add_prediction(self, arm: Arm, *, model: int, task: int, places: np.ndarray) -> None:
        _of(self.places[arm], model)[task] = places

    def add_match(self, arm: Arm, *, task: int, places: np.ndarray, match: np.ndarray) -> None:
        self.matches[arm].append((match, (places == np.array(self.drawn.tasks[task].targets)).astype(float)))

    def add_none_of_these(self, arm: Arm, *, model: int, task: int, inside: np.ndarray, outside: np.ndarray) -> None:
        if len(inside) and len(outside):
            _of(self.told_apart[arm], model)[task] = auroc(inside, outside)

    def result(self, *, seed: int) -> FamilyResult:
        tasks = self.drawn.tasks
        targets = [np.array(task.targets) for task in tasks]
        right, recall = self._right(targets), self._recall(targets)
        return FamilyResult(
            family=self.drawn.family,
            chance=1 / self.drawn.family.num_names,
            num_tasks=len(tasks),
            num_predictions=sum(len(task.pictures) for task in tasks),
            num_pictures=len({picture for task in tasks for picture in task.pictures}),
            resampled="tasks" if len(tasks) > 1 else "pictures",
            accuracy=estimates(right, seed=seed),
            unit_accuracies={arm: tuple(map(tuple, values.tolist())) for arm, values in right.items()},
            macro_recall=estimates(recall, seed=seed),
            differences=_differences(right, seed=seed),
            calibration={arm: self._calibration(found) for arm, found in self.matches.items()},
            none_of_these=self._none_of_these(seed),
            topics=self._topics(right, seed),
        )

    def _right(self, targets: list[np.ndarray]) -> dict[Arm, np.ndarray]:
        """(S, U): share right in each task, or whether each picture of the only task is right."""
        return self._by_unit(lambda places, target: (places == target).astype(float), targets)

    def _recall(self, targets: list[np.ndarray]) -> dict[Arm, np.ndarray]:
        """(S, U): macro recall of each task, or the recall of each class of the only task."""
        return self._by_unit(recall_of_classes, targets)

    def _by_unit(
        self, figure: Callable[[np.ndarray, np.ndarray], np.ndarray], targets: list[np.ndarray]
    ) -> dict[Arm, np.ndarray]:
        """(S, U) of a figure of predicted and right places."""
        found: dict[Arm, np.ndarray] = {}
        for arm in ARMS:
            if arm in self.places:
                parts = [[figure(model[task], target) for task, target in enumerate(targets)] for model in self.places[arm]]
                found[arm] = np.array([[part.mean() for part in one] if len(targets) > 1 else one[0] for one in parts])
        return found

    def _calibration(self, found: list[tuple[np.ndarray, np.ndarray]]) -> Calibration:
        return calibration(np.concatenate([match for match, _ in found]), np.concatenate([right for _, right in found]))

    def _none_of_these(self, seed: int) -> dict[Arm, Estimate]:
        """Over the tasks that had pictures of other names, the same ones for every model."""
        return estimates(
            {arm: np.array([[one[task] for task in sorted(one)] for one in models]) for arm, models in self.told_apart.items()},
            seed=seed,
        )

    def _topics(self, right: Mapping[Arm, np.ndarray], seed: int) -> tuple[TopicResult, ...]:
        numbers: dict[str, list[int]] = defaultdict(list)
        for number, task in enumerate(self.drawn.tasks):
            if task.topic is not None:
                numbers[task.topic].append(number)
        results = []
        for topic, chosen in sorted(numbers.items()):
            part = {arm: values[:, chosen] for arm, values in right.items()}
            results.append(
                TopicResult(
                    topic=topic,
                    num_tasks=len(chosen),
                    accuracy=estimates(part, seed=seed),
                    differences=_differences(part, seed=seed),
                )
            )
        return tuple(results)


def _differences(right: Mapping[Arm, np.ndarray], *, seed: int) -> tuple[Difference, ...]:
    pairs = {pair: right[pair[0]] - right[pair[1]] for pair in COMPARED if pair[0] in right and pair[1] in right}
    return tuple(
        Difference(arm=arm, baseline=baseline, difference=found)
        for (arm, baseline), found in estimates(pairs, seed=seed).items()
    )


def _of(models: list[dict[int, Value]], number: int) -> dict[int, Value]:
    """What is kept of a model."""
    while len(models) <= number:
        models.append({})
    return models[number]
