"""The sweep behind the benchmarks of the method's claim: arms x seeds on a folder of pictures, run or gone on with.

All three benchmarks share it: what one of them has trained, the others only read.  Without a folder it runs at a small scale on
the bundled sample, which shows that everything works and nothing about the claim.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from data_prep.sample.pictures import read_sample
from infra.errors import BadInputError
from pipeline.comparison import Comparison
from pipeline.sweep_command import SweepConsole
from pipeline.sweep_runner import run_sweep
from pipeline.sweep_runs import Sweep, SweepRun, load_sweep
from training.bundle import Bundle, load_bundle

SWEEP = Path(__file__).parents[2] / "pipeline" / "configs" / "sweep_results.yaml"
TRAIN, FAMILY, CONCEPT = "train-*.parquet", "eval-family.parquet", "eval-concept.parquet"
NUM_HELD_OUT = 60
"""Concepts of the bundled sample that a smoke run keeps from training; a 50-way task needs 50."""
SMOKE = {"twin": 150, "after": 60, "seeds": 2, "batch": 128, "tasks": 40}
QUICK = {"twin": 20, "after": 10, "seeds": 1, "batch": 64, "tasks": 8}


@dataclass(frozen=True)
class Results:
    sweep: Sweep
    comparison: Comparison
    folder: Path
    """Of the pictures."""
    smoke: bool
    """Small steps: what it measures says nothing about the method, and no goal of accuracy is judged."""

    @property
    def verdict(self) -> str:
        return "smoke" if self.smoke else "full"

    def runs(self, arm: str) -> list[SweepRun]:
        """Seed after seed.

        Raises:
            BadInputError: the sweep has no such arm.
        """
        found = [run for run in self.sweep.runs if run.arm == arm]
        if not found:
            raise BadInputError(f"the sweep {self.sweep.config.name} has no arm {arm!r}, which this benchmark compares")
        return found

    def bundles(self, arm: str) -> list[Bundle]:
        return [load_bundle(Path(run.uri("train")) / "bundle") for run in self.runs(arm)]

    @property
    def details(self) -> dict[str, Any]:
        """What the last line tells of the runs."""
        return {
            "verdict": self.verdict,
            "pictures": str(self.folder),
            "seeds": list(self.comparison.seeds),
            "steps": {arm: self.runs(arm)[0].config.training.num_steps for arm in self.sweep.config.arms},
            "comparison": f"{self.sweep.folder_uri}/comparison.md",
        }


def sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pictures", type=Path, help="folder of pictures (docs/pictures.md); the bundled sample when absent")
    parser.add_argument("--seeds", type=int, help="so many seeds, from 0; those of the sweep when absent")
    parser.add_argument("--workspace", type=Path, default=Path("runs/results"), help="what is done there is not done again")
    parser.add_argument("--sweep", type=Path, default=SWEEP, help="sweep file with the arms")
    parser.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")


@dataclass(frozen=True)
class Part:
    """Some arms of the sweep, with those that they start from, on one evaluation set."""

    name: str
    """What it adds to the sweep's, beside whose comparison its own lies."""
    arms: Sequence[str]
    evaluation_set: str

    def of(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        kept: set[str] = set()
        for arm in self.arms:
            needed: str | None = arm
            while needed is not None:
                kept.add(needed)
                needed = tree["arms"][needed].get("after")
        return {
            **tree,
            "name": f"{tree['name']}-{self.name}",
            "arms": {name: arm for name, arm in tree["arms"].items() if name in kept},
            "compare": [pair for pair in tree["compare"] if all(text.partition(".")[0] in kept for text in pair)],
            "evaluate": {self.evaluation_set: tree["evaluate"][self.evaluation_set]},
        }


def results_of(arguments: argparse.Namespace, *, part: Part | None = None) -> Results:
    """Run what is not done of the sweep, or of a part of it, and compare.

    Raises:
        BadInputError: the folder lacks something, or the sweep is wrong.
    """
    workspace: Path = arguments.workspace.absolute()
    folder = arguments.pictures.absolute() if arguments.pictures else write_sample_folder(workspace / "sample")
    small = QUICK if arguments.quick else SMOKE if arguments.pictures is None else None
    tree = yaml.safe_load(arguments.sweep.read_text())
    if part is not None:
        tree = part.of(tree)
    base = (arguments.sweep.parent / tree["base"]).resolve()
    changed = on_folder({**tree, "base": str(base)}, folder, workspace=workspace)
    if arguments.pictures is None:  # its sources have other names
        changed["set"]["training.source_weights"] = {}
        for arm in changed["arms"].values():
            arm["set"].pop("training.source_weights", None)
    if small:
        changed = shortened(changed, **small)
    if arguments.seeds is not None:
        changed["seeds"] = list(range(arguments.seeds))
    path = workspace / f"{changed['name']}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(changed, sort_keys=False))
    sweep = load_sweep(path)
    finished = run_sweep(sweep, SweepConsole())
    return Results(sweep, finished.comparison, folder, smoke=small is not None)


def on_folder(tree: Mapping[str, Any], folder: Path, *, workspace: Path) -> dict[str, Any]:
    """The sweep with the pictures of a folder in place of `pictures/`.

    Raises:
        BadInputError: the folder lacks a file.
    """
    train = sorted(str(path) for path in folder.glob(TRAIN))
    missing = [name for name in (FAMILY, CONCEPT) if not (folder / name).is_file()] + ([] if train else [TRAIN])
    if missing:
        raise BadInputError(f"{folder} has no {' and no '.join(missing)}; docs/pictures.md says what belongs there")
    settings = {
        **tree["set"],
        "workspace": str(workspace),
        "datasets.train.source.uris": train,
        "datasets.evaluation.source.uris": [str(folder / FAMILY)],
    }
    sets = {
        name: {
            key: [_moved(uri, folder) for uri in value] if key in ("uris", "names_from") else value
            for key, value in one.items()
        }
        for name, one in tree["evaluate"].items()
    }
    return {**tree, "set": settings, "evaluate": sets}


def _moved(uri: str, folder: Path) -> str:
    return str(folder / Path(uri).relative_to("pictures"))


def shortened(tree: Mapping[str, Any], *, twin: int, after: int, seeds: int, batch: int, tasks: int) -> dict[str, Any]:
    """The same arms with fewer steps, a smaller batch and fewer tasks."""
    arms: dict[str, Any] = {}
    for name, arm in tree["arms"].items():
        steps = after if "after" in arm else twin
        changed = {**arm["set"], "training.num_steps": steps}
        if "training.freeze_steps" in changed:
            changed["training.freeze_steps"] = steps
        arms[name] = {**arm, "set": changed}
    settings = {
        **tree["set"],
        "training.contrastive_batch_size": batch,
        "training.optimizer": {**tree["set"]["training.optimizer"], "warmup_steps": min(5, after)},
    }
    sets = {
        name: {**one, "tasks": {**one["tasks"], "num_tasks": min(tasks, one["tasks"]["num_tasks"])}}
        for name, one in tree["evaluate"].items()
    }
    name = f"{tree['name']}-{twin}-steps"  # beside the real one, which it must not replace
    return {**tree, "name": name, "set": settings, "seeds": list(range(seeds)), "arms": arms, "evaluate": sets}


def write_sample_folder(folder: Path) -> Path:
    """The bundled sample in the form of a folder of pictures: some concepts, all their artists, are kept from training."""
    rows = read_sample().to_pylist()
    concepts = list(dict.fromkeys(row["concept"] for row in rows))
    held_out = set(concepts[:: len(concepts) // NUM_HELD_OUT][:NUM_HELD_OUT])
    parts: dict[str, Sequence[Mapping[str, Any]]] = {
        "train-00.parquet": [row for row in rows if row["split"] == "train" and row["concept"] not in held_out],
        FAMILY: [row for row in rows if row["split"] == "evaluation" and row["concept"] not in held_out],
        CONCEPT: [row for row in rows if row["concept"] in held_out],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in parts.items():
        pq.write_table(pa.Table.from_pylist(list(chosen), schema=read_sample().schema), folder / name)
    return folder
