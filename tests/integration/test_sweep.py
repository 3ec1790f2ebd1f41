"""A sweep on the bundled pictures, interrupted and continued: real data steps, training under Ray, evaluation and MLflow."""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlflow
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.sample.pictures import read_sample
from infra import artefacts
from infra.cluster import ClusterConfig, connected
from infra.tracking import TrackingConfig
from pipeline import cli
from pipeline.comparison import Comparison
from pipeline.sweep_command import SweepConsole
from pipeline.sweep_runner import run_sweep
from pipeline.sweep_runs import SweepRun, load_sweep
from training.metrics_log import read_metrics

pytestmark = pytest.mark.integration
NUM_CONCEPTS = 24


class Made(NamedTuple):
    path: Path
    workspace: Path
    interrupted: list[Path]
    """What was done when the sweep was interrupted."""
    before: dict[Path, bytes]
    output: str
    """Of the run that continued it."""


class Interrupting(SweepConsole):
    """Someone presses Ctrl-C before the second run begins."""

    def run_begins(self, run: SweepRun, *, number: int, total: int) -> None:
        if number == 2:
            raise KeyboardInterrupt


def sweep_file(folder: Path) -> Path:
    datasets = {}
    for name, split in (("train", "train"), ("evaluation", "evaluation")):
        table = read_sample(split)
        concepts = set(table["concept"].unique().to_pylist()[:NUM_CONCEPTS])
        chosen = table.filter([concept in concepts for concept in table["concept"].to_pylist()])
        pq.write_table(chosen, folder / f"{name}.parquet")
        columns = {"image": "image", "caption": "caption", "concept": "concept", "group": "group"}
        datasets[name] = {"source": {"kind": "pictures", "uris": [str(folder / f"{name}.parquet")], "columns": columns}}
    small = {
        "num_steps": 4,
        "contrastive_batch_size": 24,
        "loader_workers": 0,
        "log_every_steps": 1,
        "optimizer": {"warmup_steps": 1},
        "checkpoint": {"every_steps": 4},
        "zero_stage": 0,
        "conditioning": {"groups": [2, 3], "drop_share": 0},
    }
    path = folder / "sweep.yaml"
    (folder / "base.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "base",
                "workspace": str(folder / "work"),
                "datasets": datasets,
                "training": {"model": "hyperclip_test", **small},
                "evaluation": {"ways": [5, 10], "kinds": ["random"], "num_tasks": 8},
            }
        )
    )
    path.write_text(
        yaml.safe_dump(
            {
                "name": "small",
                "base": "base.yaml",
                "seeds": [0],
                "arms": {"twin": {"set": {"training.model": "siglip_test"}}, "hyperclip": {"after": "twin", "teacher": "twin"}},
                "compare": [["hyperclip", "twin"], ["hyperclip", "hyperclip.swapped"]],
                "evaluate": {
                    "held-out": {},
                    "trained-on": {
                        "uris": [str(folder / "train.parquet")],
                        "tasks": {"ways": [5], "kinds": ["random"], "num_tasks": 6},
                    },
                },
            },
            sort_keys=False,
        )
    )
    return path


def step_files(workspace: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(workspace.glob("*-*/*.json"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, new_tracking: Callable[[Path], TrackingConfig]) -> Made:
    folder = tmp_path_factory.mktemp("sweep")
    path, workspace = sweep_file(folder), folder / "work"
    tracking = mlflow.get_tracking_uri()
    new_tracking(workspace)
    with connected(ClusterConfig(num_cpus=2)):  # for both
        with pytest.raises(KeyboardInterrupt):
            run_sweep(load_sweep(path), Interrupting())
        before = step_files(workspace)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
            patch.setattr(sys, "argv", ["hyperclip", "sweep", str(path)])
            cli.app(standalone_mode=False)
    mlflow.set_tracking_uri(tracking)
    return Made(path, workspace, [uri for uri in before if uri.name == "step.json"], before, printed.getvalue())


def test_a_sweep_that_was_interrupted_goes_on_where_it_was(made: Made) -> None:
    trained = [path.parent.name for path in made.interrupted if path.parent.name.startswith("train-")]
    assert len(trained) == 1
    assert all(path.read_bytes() == data for path, data in made.before.items())
    assert len(list(made.workspace.glob("train-*/bundle/bundle.json"))) == 2
    assert len(list(made.workspace.glob("shard-train-*"))) == 1  # what the arms share is made once
    assert "run 1 of 2: twin, seed 0 (done before)" in made.output
    assert "run 2 of 2: hyperclip, seed 0\n" in made.output


def test_the_comparison_is_of_what_the_evaluations_hold(made: Made) -> None:
    comparison = artefacts.read_model(str(made.workspace / "sweeps" / "small" / "comparison.json"), Comparison)
    assert comparison.seeds == (0,)
    assert [(tasks.evaluation_set, tasks.kind, tasks.num_tasks) for tasks in comparison.tasks] == [
        ("held-out", "5_way", 8),
        ("held-out", "10_way", 8),
        ("trained-on", "5_way", 6),
    ]
    sweep = load_sweep(made.path)
    for tasks in comparison.tasks:
        by_arm = {(one.arm, one.reading): one.accuracy for one in tasks.arms}
        of_twin = {reading for arm, reading in by_arm if arm == "twin"}
        assert of_twin == {"neutral", "neutral_centred", "neutral_orthogonal"}  # it generates nothing
        assert {reading for arm, reading in by_arm if arm == "hyperclip"} == {"specialized", "swapped", *of_twin}
        gain = tasks.differences[0].difference
        assert gain.mean == pytest.approx(by_arm["hyperclip", "specialized"].mean - by_arm["twin", "neutral"].mean)
        assert all(one.low <= one.mean <= one.high for one in by_arm.values())
    for run in sweep.runs:
        assert run.state == "done"
        assert (read_metrics(run.uri("train"))[-1]["distillation_loss"] > 0) == (run.arm == "hyperclip")
    assert comparison.generated.keys() == {"hyperclip"}
    assert comparison.generated["hyperclip"].rms > 0 < comparison.generated["hyperclip"].variation
    text = (made.workspace / "sweeps" / "small" / "comparison.md").read_text()
    assert "| hyperclip.specialized | twin.neutral |" in text
    assert "hyperclip.specialized - twin.neutral" in made.output


def test_mlflow_has_one_experiment_with_every_run_below_one(made: Made) -> None:
    tracking = load_sweep(made.path).common.resolved_tracking
    client = mlflow.MlflowClient(tracking_uri=tracking.uri)
    experiment = client.get_experiment_by_name("small")
    found = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    (parent,) = (run for run in found.values() if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in found.values() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {(run.data.tags["arm"], run.data.params["seed"]) for run in children} == {
        ("twin", "0"),
        ("hyperclip", "0"),
    }
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert all("held-out.accuracy_10_way.neutral" in run.data.metrics for run in children)
    assert "difference.held-out.10_way.hyperclip.specialized-twin.neutral" in parent.data.metrics
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"comparison.json", "comparison.md", "comparison.png"} <= artifacts


def test_a_finished_sweep_does_nothing_again(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before = step_files(made.workspace)
    run_sweep(load_sweep(made.path), SweepConsole())
    assert step_files(made.workspace) == before


@pytest.mark.slow
def test_one_seed_more_trains_that_seed_only(made: Made) -> None:
    before = step_files(made.workspace)
    finished = run_sweep(load_sweep(made.path, ("seeds=[0,1]",)), SweepConsole())
    assert finished.comparison.seeds == (0, 1)
    assert len(finished.comparison.tasks[0].differences[0].difference.seeds) == 2
    after = step_files(made.workspace)
    assert {path: after[path] for path in before} == before
    assert len(list(made.workspace.glob("train-*/bundle/bundle.json"))) == 4
    client = mlflow.MlflowClient(tracking_uri=load_sweep(made.path).common.resolved_tracking.uri)
    found = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    parents = {run.info.run_id for run in found if "sweep" in run.data.tags and "arm" not in run.data.tags}
    assert parents == {finished.run_id}  # the sweep goes on in the MLflow run it had
