"""The runs of a sweep: each is an ordinary run with its addresses, so that what arms have in common is made once."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra import storage
from infra.config import content_hash, problems_of, set_value
from infra.errors import BadInputError
from pipeline.config import RunConfig
from pipeline.model_steps import bundle_uri
from pipeline.steps import PlannedStep, State
from pipeline.sweep import READINGS, Contender, SweepConfig, contender, read_sweep, readings_of
from pipeline.sweep_steps import SweepPlanner
from training.config import TrainConfig

FREE = ("training.", "datasets.train.")
"""What arms may differ in: all models have to be evaluated on the same tasks, and lie in one workspace."""
SWEEPS = "sweeps"
"""Folder in the workspace for what sweeps tell."""
TAKEN = {"name": "it follows from the sweep", "training.seed": "that is what `seeds` is for"}


@dataclass(frozen=True)
class SweepRun:
    """One arm with one seed."""

    arm: str
    seed: int
    config: RunConfig
    planned: list[PlannedStep]

    @property
    def title(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def state(self) -> State:
        states = [entry.state for entry in self.planned]
        if "unknown" in states:
            return "unknown"
        if all(state == "done" for state in states):
            return "done"
        # what arms share is done before them, so only training tells of this one
        return "to do" if entry_of(self.planned, "train").state == "to do" else "begun"

    def uri(self, step: str) -> str:
        return entry_of(self.planned, step).output_uri


@dataclass(frozen=True)
class Sweep:
    config: SweepConfig
    runs: list[SweepRun]
    """Seed after seed, so that the first comparison is there early; within a seed an arm comes after those it needs."""

    @property
    def pairs(self) -> list[tuple[Contender, Contender]]:
        models = {run.arm: run.config.training.model for run in self.runs}
        found = [[contender(text, model=models[text.partition(".")[0]]) for text in pair] for pair in self.config.compare]
        return [(one, other) for one, other in found]

    @property
    def common(self) -> RunConfig:
        """A run whose workspace, cluster and tracking are those of all."""
        return self.runs[0].config

    @property
    def folder_uri(self) -> str:
        """Where the comparison lies."""
        return storage.join(self.common.workspace_uri, SWEEPS, self.config.name)


def entry_of(planned: Sequence[PlannedStep], step: str) -> PlannedStep:
    return next(entry for entry in planned if entry.step.name == step)


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and resolve the run of every arm and seed; nothing is written.

    Raises:
        BadInputError: anything is wrong with the sweep, or with the run of any arm; every problem is listed.
    """
    config, tree = read_sweep(path, overrides)
    problems = config.reference_problems()
    planner = SweepPlanner(config.evaluate)
    found: dict[str, list[str]] = {}
    trainings: dict[str, TrainConfig] = {}
    for arm in config.arms:
        run, wrong = _resolved(config, tree, arm, seed=config.seeds[0], bundle_of=lambda other: f"the model of {other}")
        if run is not None:
            trainings[arm] = run.training
        for problem in wrong:
            found.setdefault(problem, []).append(arm)
    for problem, arms in found.items():
        problems.append(problem if len(arms) == len(config.arms) > 1 else f"arm {', '.join(arms)}: {problem}")
    problems += _unknown_readings(config, {arm: training.model for arm, training in trainings.items()})
    problems += _unfit_teachers(config, trainings)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise BadInputError(f"{path} has {len(problems)} problem(s):\n{listed}")
    runs = []
    for seed in config.seeds:
        trained: dict[str, PlannedStep] = {}
        for arm in config.arms_in_order():
            after, teacher = (trained.get(other or "") for other in (config.arms[arm].after, config.arms[arm].teacher))
            bundles = {other: bundle_uri(step.output_uri) for other, step in trained.items()}
            run, wrong = _resolved(config, tree, arm, seed=seed, bundle_of=bundles.__getitem__)
            if run is None:
                raise BadInputError(f"{path}: arm {arm}, seed {seed}: {'; '.join(wrong)}")
            planned = planner.plan(run, after=after, teacher=teacher)
            trained[arm] = entry_of(planned, "train")
            runs.append(SweepRun(arm, seed, run, planned))
    return Sweep(config, runs)


def _resolved(
    config: SweepConfig, base: dict[str, Any], arm: str, *, seed: int, bundle_of: Callable[[str], str]
) -> tuple[RunConfig | None, list[str]]:
    """The run of an arm with a seed, or what is wrong with it.

    Args:
        bundle_of: where the model of an arm that it needs lies.
    """
    settings = config.arms[arm].set
    problems = [f"set.{key}: {TAKEN[key]}" for key in (*config.set, *settings) if key in TAKEN]
    problems += [
        f"set.{key}: arms differ in {' and '.join(part + '*' for part in FREE)} only; put it into `set` of the sweep"
        for key in settings
        if not key.startswith(FREE)
    ]
    changes = {**config.set, **settings, "name": f"{config.name}-{arm}-seed-{seed}", "training.seed": seed}
    for field, other, key in (
        ("after", config.arms[arm].after, "training.init_from"),
        ("teacher", config.arms[arm].teacher, "training.distillation.teacher"),
    ):
        if other is not None:
            if key in settings:
                problems.append(f"set.{key}: it follows from `{field}`")
            changes[key] = bundle_of(other)
    tree = copy.deepcopy(base)
    tree.pop("showcase", None)  # no model of a sweep is registered or served
    for key, value in changes.items():
        try:
            set_value(tree, key, value)
        except BadInputError as error:
            problems.append(str(error))
    try:
        found = RunConfig.model_validate(tree)
    except ValidationError as error:
        return None, problems + problems_of(error, RunConfig)
    tracking = found.resolved_tracking.rebuilt(experiment=config.name)
    return (None if problems else found.rebuilt(tracking=tracking)), problems


def _unknown_readings(config: SweepConfig, models: Mapping[str, str]) -> list[str]:
    """Args: models by arm, of arms that are right."""
    problems = []
    for number, pair in enumerate(config.compare):
        for text in pair:
            arm, _, reading = text.partition(".")
            if reading in READINGS and arm in models and reading not in readings_of(models[arm]):
                problems.append(f"compare.{number}: {models[arm]} generates nothing, so {arm!r} has no reading {reading!r}")
    return problems


def _unfit_teachers(config: SweepConfig, trainings: Mapping[str, TrainConfig]) -> list[str]:
    """What else would show only once the teacher is trained.  Args: trainings by arm, of arms that are right."""
    problems = []
    for name, arm in config.arms.items():
        if name in trainings and arm.teacher is not None and arm.teacher in trainings:
            ours, theirs = (trainings[one].preprocess.image_size for one in (name, arm.teacher))
            if ours != theirs:
                problems.append(
                    f"arms.{name}.teacher: {arm.teacher!r} reads pictures of {theirs} px, {name!r} of {ours} px; they have to "
                    "be the same"
                )
    return problems


def sweep_hash(sweep: Sweep) -> str:
    """Of all that decides the comparison."""
    runs = [[run.arm, run.seed, [entry.hash for entry in run.planned]] for run in sweep.runs]
    return content_hash({"runs": runs, "compare": sweep.config.compare})
