"""What a sweep found: mean accuracy of each arm over seeds and tasks, and paired differences, with 95 % intervals.

The intervals come from a bootstrap over seeds and over tasks.  All arms are resampled alike, seed by seed and task by task, so
that a difference has an interval of its own, narrower than those of the two arms suggest.
Shapes: S seeds, T tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from infra.config import StrictModel
from infra.errors import BadInputError
from pipeline.sweep import Contender
from pipeline.sweep_steps import SetAccuracies
from training.evaluation.measures import Estimate, estimates

Key = TypeVar("Key")


class SeedEstimate(Estimate):
    """A mean over seeds and tasks with its 95 % interval."""

    seeds: tuple[float, ...]
    """Mean over tasks of each seed."""


class Generated(StrictModel):
    """What the hypernetworks of an arm generated at the end of training, mean over seeds."""

    rms: float
    """Root mean square of the deltas."""
    variation: float
    """How much of it differs between the groups of a batch: near 0 nothing is specialized, whatever the accuracy."""


class ArmResult(StrictModel):
    arm: str
    reading: str
    accuracy: SeedEstimate


class Difference(StrictModel):
    contender: str
    baseline: str
    difference: SeedEstimate
    """Contender minus baseline, on the same tasks and with the same seeds."""

    @property
    def verdict(self) -> Literal["above", "below", "not told apart"]:
        if self.difference.low > 0:
            return "above"
        return "below" if self.difference.high < 0 else "not told apart"


class TaskComparison(StrictModel):
    """All arms on the tasks of one kind."""

    evaluation_set: str
    kind: str
    title: str
    chance: float
    num_tasks: int
    arms: tuple[ArmResult, ...]
    differences: tuple[Difference, ...]


class Comparison(StrictModel):
    """`comparison.json`."""

    schema_version: Literal[1] = 1
    sweep: str
    seeds: tuple[int, ...]
    generated: dict[str, Generated]
    """By arm, those with a hypernetwork."""
    tasks: tuple[TaskComparison, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Every mean and every end of an interval by name, for MLflow."""
        found: dict[str, float] = {}
        for tasks in self.tasks:
            place = f"{tasks.evaluation_set}.{tasks.kind}"
            values = {f"accuracy.{place}.{one.arm}.{one.reading}": one.accuracy for one in tasks.arms}
            values |= {f"difference.{place}.{one.contender}-{one.baseline}": one.difference for one in tasks.differences}
            for name, value in values.items():
                found |= {name: value.mean, f"{name}.low": value.low, f"{name}.high": value.high}
        return found


def compare(
    name: str,
    results: Mapping[str, Mapping[int, Mapping[str, SetAccuracies]]],
    *,
    pairs: Sequence[tuple[Contender, Contender]],
    generated: Mapping[str, Generated],
) -> Comparison:
    """Compare the arms of a sweep.

    Args:
        results: by arm, seed and evaluation set; the same seeds and sets everywhere.

    Raises:
        BadInputError: two models were evaluated on different tasks.
    """
    first = next(iter(results.values()))
    seeds, sets = tuple(first), tuple(next(iter(first.values())))
    tasks = []
    for set_name in sets:
        found = [by_set[set_name] for by_seed in results.values() for by_set in by_seed.values()]
        if len({one.tasks_identity for one in found}) > 1:
            raise BadInputError(f"the models of sweep {name} were not all evaluated on the same tasks of {set_name}")
        for kind in found[0].kinds:
            values = {
                Contender(arm, reading): np.array([by_seed[seed][set_name].kinds[kind].readings[reading] for seed in seeds])
                for arm, by_seed in results.items()
                for reading in by_seed[seeds[0]][set_name].kinds[kind].readings
            }
            tasks.append(_compare_on(set_name, kind, found[0], values, pairs))
    return Comparison(sweep=name, seeds=seeds, generated=dict(generated), tasks=tuple(tasks))


def _compare_on(
    set_name: str,
    kind: str,
    accuracies: SetAccuracies,
    values: Mapping[Contender, np.ndarray],
    pairs: Sequence[tuple[Contender, Contender]],
) -> TaskComparison:
    """Args: values (S, T) by contender."""
    pairs = [pair for pair in pairs if values.keys() >= set(pair)]  # one task of all names cannot be swapped with another
    means = _with_seeds(values)
    differences = _with_seeds({(one, other): values[one] - values[other] for one, other in pairs})
    tasks = accuracies.kinds[kind]
    return TaskComparison(
        evaluation_set=set_name,
        kind=kind,
        title=tasks.title,
        chance=tasks.chance,
        num_tasks=len(next(iter(tasks.readings.values()))),
        arms=tuple(ArmResult(arm=one.arm, reading=one.reading, accuracy=mean) for one, mean in means.items()),
        differences=tuple(
            Difference(contender=str(one), baseline=str(other), difference=difference)
            for (one, other), difference in differences.items()
        ),
    )


def _with_seeds(values: Mapping[Key, np.ndarray]) -> dict[Key, SeedEstimate]:
    """Mean and interval of each (S, T); all are resampled alike."""
    return {
        key: SeedEstimate(**estimate.model_dump(), seeds=tuple(values[key].mean(axis=1).tolist()))
        for key, estimate in estimates(values, seed=0).items()
    }
