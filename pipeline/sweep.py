"""A sweep: arms x seeds of one run configuration, and which of them are compared on which pictures.

name: names-help
base: quickstart.yaml                     # a run configuration; from the folder of the sweep file
set: {training.num_steps: 200}            # of every arm
seeds: [0, 1, 2]
arms:
  twin: {set: {training.model: siglip_quickstart}}
  hyperclip: {after: twin}                # starts from the twin of the same seed
  student: {teacher: hyperclip}           # learns from the hyperclip of the same seed besides
compare: [[hyperclip, twin], [hyperclip, hyperclip.swapped]]
evaluate:
  held-out: {}                            # the evaluation pictures of the run itself
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import Field, NonNegativeInt, StringConstraints

from infra import storage
from infra.config import StrictModel, config_tree, parse_config, parse_override
from infra.errors import BadInputError
from training.evaluation.arms import Arm
from training.evaluation.zero_shot import EvaluationConfig
from training.model.registry import model_config

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")]
"""Of arms and evaluation sets: a part of addresses and of MLflow's names, so without dots."""


READINGS: tuple[str, ...] = tuple(arm for arm in get_args(Arm) if not arm.startswith("twin"))
"""Of one model; a twin is an arm of its own here."""
OF_NAMES = ("specialized", "swapped")
"""Readings that only what a hypernetwork generates tells from the neutral one."""


class ArmConfig(StrictModel):
    """One recipe."""

    after: str | None = None
    """Another arm: each seed starts from the model that this one trained with the same seed (`training.init_from`)."""
    teacher: str | None = None
    """Another arm: each seed learns from the model that this one trained with the same seed besides
    (`training.distillation.teacher`)."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of `training` and `datasets.train` by path, `training.optimizer.learning_rate: 1.0e-3`, over those of every
    arm.  Where it is stored, what it is evaluated on and how it is tracked are common to all arms."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The arms that have to be trained before it."""
        return tuple(dict.fromkeys(arm for arm in (self.after, self.teacher) if arm is not None))


class EvaluationSetConfig(StrictModel):
    """Pictures that every model is evaluated on."""

    uris: tuple[str, ...] = ()
    """Parquet files, a CLIP_benchmark folder or a folder of shards; none: the evaluation pictures of the run itself."""
    only: dict[str, str] = Field(default_factory=dict)
    """Of parquet files: column -> value of the rows that are taken."""
    names_from: tuple[str, ...] = ()
    """Parquet files, or folders of them, with the names that stand beside those of the pictures in tasks of kind
    `held_out_among_known`."""
    tasks: EvaluationConfig | None = None
    """Which tasks are drawn; those of the run's section `evaluation` when absent."""


class SweepConfig(StrictModel):
    """A sweep file."""

    name: Name
    """Of the MLflow experiment, its parent run and the folder of the comparison."""
    base: str
    """A run configuration: all that the arms have in common; a path from the folder of the sweep file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings by path over those of the base, for every arm."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each arm is trained once with each (`training.seed`)."""
    arms: dict[Name, ArmConfig] = Field(min_length=1)
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of contender and baseline whose difference is shown: arms, or readings of them (`hyperclip.swapped`)."""
    evaluate: dict[Name, EvaluationSetConfig] = Field(default={"held-out": EvaluationSetConfig()}, min_length=1)

    def reference_problems(self) -> list[str]:
        """What is named and not there, or there twice."""
        problems = [f"seeds: {seed} is there {count} times" for seed, count in _repeated(self.seeds)]
        for name, arm in self.arms.items():
            for field, other in (("after", arm.after), ("teacher", arm.teacher)):
                if other is not None and other not in self.arms:
                    problems.append(f"arms.{name}.{field}: there is no arm {other!r}; arms: {', '.join(self.arms)}")
        problems += [f"arms: {' after '.join(cycle)}: none of them can be the first" for cycle in self._cycles()]
        for number, pair in enumerate(self.compare):
            for text in pair:
                named, dot, reading = text.partition(".")
                if named not in self.arms:
                    problems.append(f"compare.{number}: there is no arm {named!r}; arms: {', '.join(self.arms)}")
                if dot and reading not in READINGS:
                    problems.append(f"compare.{number}: there is no reading {reading!r}; readings: {', '.join(READINGS)}")
            if pair[0] == pair[1]:
                problems.append(f"compare.{number}: {pair[0]!r} is compared with itself")
        return problems

    def arms_in_order(self) -> list[str]:
        """Every arm after those that it needs; else as in the file."""
        placed: list[str] = []

        def place(name: str) -> None:
            if name in placed:
                return
            for needed in self.arms[name].needs:
                place(needed)
            placed.append(name)

        for name in self.arms:
            place(name)
        return placed

    def _cycles(self) -> list[list[str]]:
        found: list[list[str]] = []
        followed: set[str] = set()

        def follow(name: str, way: list[str]) -> None:
            if name in way:
                found.append([*way[way.index(name) :], name])
            elif name not in followed:
                for needed in self.arms[name].needs:
                    if needed in self.arms:
                        follow(needed, [*way, name])
                followed.add(name)

        for name in self.arms:
            follow(name, [])
        return found


class Contender(NamedTuple):
    """An arm under one reading of its models."""

    arm: str
    reading: str

    def __str__(self) -> str:
        return f"{self.arm}.{self.reading}"


def readings_of(model: str) -> tuple[str, ...]:
    """The readings that differ for a model: of one that generates nothing those without names."""
    generates = model_config(model).hypernetwork is not None
    return READINGS if generates else tuple(reading for reading in READINGS if reading not in OF_NAMES)


def contender(text: str, *, model: str) -> Contender:
    """`ARM.READING`, or `ARM` for what is deployed: specialized, where there is a hypernetwork."""
    arm, _, reading = text.partition(".")
    return Contender(arm, reading or readings_of(model)[0])


def read_sweep(path: Path, overrides: Sequence[str]) -> tuple[SweepConfig, dict[str, Any]]:
    """A sweep file and the tree of its base run, not yet validated, with the settings of every arm.

    Args:
        overrides: `a.b=value`; those of a setting of sweeps change the sweep, all others the run of every arm.

    Raises:
        BadInputError: a file is not there or no YAML, or the sweep has wrong settings; every problem is listed.
    """
    changes = [parse_override(override) for override in overrides]
    own = [text for text, (key, _) in zip(overrides, changes, strict=True) if key.partition(".")[0] in SweepConfig.model_fields]
    config = parse_config(_text(path), SweepConfig, source=str(path), overrides=own)
    base = path.parent / config.base
    tree = config_tree(_text(base), source=str(base))
    common = {**config.set, **{key: value for text, (key, value) in zip(overrides, changes, strict=True) if text not in own}}
    return config.rebuilt(set=common), tree


def _text(path: Path) -> str:
    try:
        return storage.read_bytes(str(path)).decode()
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is no text, so no configuration") from error


def _repeated(values: Sequence[int]) -> list[tuple[int, int]]:
    return [(value, values.count(value)) for value in dict.fromkeys(values) if values.count(value) > 1]
