"""The runner: what is done is skipped, what failed or was cut off goes on, and MLflow tells what became of each step."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from infra import storage
from infra.errors import BadInputError, HyperClipError
from infra.tracking import TrackingConfig
from pipeline import runner
from pipeline.config import RunConfig, load_run_config
from pipeline.model_steps import model_steps
from pipeline.steps import RECORD_NAME, PlannedStep, Progress, Step, StepContext, StepRecord, StepResult, plan_steps

pytestmark = pytest.mark.integration
QUICKSTART = Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml"


class Watching:
    """An observer that keeps what it was told."""

    def __init__(self) -> None:
        self.skipped_steps: list[str] = []
        self.finished_steps: list[str] = []
        self.continued: dict[str, str] = {}

    def skipped(self, step: Step, record: StepRecord) -> None:
        self.skipped_steps.append(step.name)

    def running(self, step: Step, *, so_far: str | None) -> "Watching":
        if so_far:
            self.continued[step.name] = so_far
        return self

    def __enter__(self) -> Progress:
        return lambda done, total, note: None

    def __exit__(self, *error: object) -> None: ...

    def finished(self, record: StepRecord) -> None:
        self.finished_steps.append(record.step)


class Work:
    """Three steps in a row that read and write files, without Ray: `b` reads `a`, `c` reads `b`."""

    def __init__(self) -> None:
        self.settings = {"a": 1, "b": 1, "c": 1}
        self.fails: dict[str, BaseException] = {}
        self.began: list[str] = []

    def steps(self) -> list[Step]:
        chain = {"a": (), "b": ("a",), "c": ("b",)}
        return [
            Step(name=name, title=name.upper(), settings=self.settings[name], reads=reads, work=self._work(name))
            for name, reads in chain.items()
        ]

    def _work(self, name: str) -> Callable[[StepContext], StepResult]:
        def work(context: StepContext) -> StepResult:
            self.began.append(name)
            assert not storage.list_files(context.output_uri)  # what an attempt before left was removed
            storage.write_atomic(storage.join(context.output_uri, "half.txt"), "half")
            if name in self.fails:
                raise self.fails[name]
            read = [storage.read_bytes(storage.join(uri, "whole.txt")).decode() for uri in context.inputs.values()]
            storage.write_atomic(storage.join(context.output_uri, "whole.txt"), "".join([*read, name]))
            return StepResult(summary=f"made {name}", facts={"name": name}, metrics={"size": 1})

        return work


@pytest.fixture
def config(tmp_path: Path, new_tracking: Callable[[Path], TrackingConfig]) -> Iterator[RunConfig]:
    before = mlflow.get_tracking_uri()
    new_tracking(tmp_path / "workspace")
    yield load_run_config(QUICKSTART, (f"workspace={tmp_path}/workspace",))
    mlflow.set_tracking_uri(before)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Takes the place of the steps of a configuration; everything else is the real runner."""
    found = Work()

    def plan(config: RunConfig) -> list[PlannedStep]:
        return plan_steps(found.steps(), config.workspace_uri)

    monkeypatch.setattr(runner, "plan", plan)
    return found


def run(config: RunConfig, until: str = "c") -> Watching:
    watching = Watching()
    runner.run(config, watching, until=until)
    return watching


def files_of(config: RunConfig) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(config.workspace_uri).glob("*/*") if path.parent.name[1] == "-"}


def tracked_runs(config: RunConfig) -> list[tuple[str, str]]:
    client = mlflow.MlflowClient(tracking_uri=config.resolved_tracking.uri)
    experiment = client.get_experiment_by_name(config.resolved_tracking.experiment)
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [(found.info.run_name, found.info.status) for found in runs]


def test_a_second_run_skips_everything_and_changes_no_file(config: RunConfig, work: Work) -> None:
    assert run(config).finished_steps == ["a", "b", "c"]
    before = files_of(config)
    assert b"abc" in before.values()
    again = run(config)
    assert (again.skipped_steps, again.finished_steps) == (["a", "b", "c"], [])
    assert work.began == ["a", "b", "c"]
    assert files_of(config) == before


@pytest.mark.parametrize(
    ("error", "status"), [(HyperClipError("no room"), "FAILED"), (OSError("disk"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_step_that_fails_is_done_again_and_the_steps_before_it_stay(
    config: RunConfig, work: Work, error: BaseException, status: str
) -> None:
    work.fails["b"] = error
    with pytest.raises(type(error)):
        run(config)
    assert sorted(tracked_runs(config)) == sorted([(config.name, status), ("a", "FINISHED"), ("b", status)])
    work.fails.clear()
    again = run(config)
    assert (again.skipped_steps, again.finished_steps) == (["a"], ["b", "c"])
    # the same MLflow runs go on
    assert sorted(tracked_runs(config)) == sorted((name, "FINISHED") for name in (config.name, "a", "b", "c"))


def test_a_changed_setting_gives_a_new_address_and_leaves_what_came_before_alone(config: RunConfig, work: Work) -> None:
    run(config)
    before = files_of(config)
    work.settings["b"] = 2
    again = run(config)
    assert (again.skipped_steps, again.finished_steps) == (["a"], ["b", "c"])
    after = files_of(config)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) * 5 // 3
    work.settings["b"] = 1  # and back
    assert run(config).skipped_steps == ["a", "b", "c"]


def test_until_stops_there(config: RunConfig, work: Work) -> None:
    assert run(config, until="b").finished_steps == ["a", "b"]
    with pytest.raises(BadInputError, match="no step 'd'; its steps: a, b, c"):
        run(config, until="d")


def test_a_step_without_its_record_is_not_done(config: RunConfig, work: Work) -> None:
    run(config)
    (record,) = Path(config.workspace_uri).glob(f"b-*/{RECORD_NAME}")
    record.unlink()
    assert run(config).finished_steps == ["b"]


def test_two_runs_do_not_share_a_workspace(config: RunConfig, work: Work) -> None:
    with runner.only_run_in(config.workspace_uri), pytest.raises(BadInputError, match="another run uses"):
        run(config)
    assert work.began == []
    assert run(config).finished_steps == ["a", "b", "c"]


def test_the_metrics_of_a_step_are_in_its_own_run(config: RunConfig, work: Work) -> None:
    run(config)
    client = mlflow.MlflowClient(tracking_uri=config.resolved_tracking.uri)
    experiment = client.get_experiment_by_name(config.resolved_tracking.experiment)
    by_name = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    parent = by_name[config.name]
    assert parent.data.params["run_hash"] == config.run_hash
    for name in ("a", "b", "c"):
        assert by_name[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert by_name[name].data.metrics.keys() == {"size", "seconds"}


def test_a_run_that_mlflow_forgot_begins_a_new_one(config: RunConfig, work: Work) -> None:
    first = runner.run(config, Watching(), until="c").run_id
    mlflow.MlflowClient(tracking_uri=config.resolved_tracking.uri).delete_run(first)
    assert runner.run(config, Watching(), until="c").run_id != first


def test_a_step_that_goes_on_says_where_before_and_after(config: RunConfig, work: Work) -> None:
    def halves(output_uri: str) -> str | None:
        return "after 1 half" if storage.exists(storage.join(output_uri, "half.txt")) else None

    def go_on(context: StepContext) -> StepResult:
        if not storage.exists(storage.join(context.output_uri, "half.txt")):
            storage.write_atomic(storage.join(context.output_uri, "half.txt"), "half")
            raise KeyboardInterrupt
        storage.write_atomic(storage.join(context.output_uri, "whole.txt"), "ab")
        return StepResult(summary="made b")

    a, b, c = work.steps()
    steps = [a, replace(b, clean_start=False, so_far=halves, work=go_on), c]  # as a download and a training are
    work.steps = lambda: steps  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(config)
    (begun,) = (entry for entry in runner.plan(config) if entry.step.name == "b")
    assert (begun.record, begun.so_far) == (None, "after 1 half")
    assert run(config).continued == {"b": "after 1 half"}
    records = {entry.step.name: entry.record for entry in runner.plan(config)}
    assert [record and record.continued for record in records.values()] == [None, "after 1 half", None]


def test_the_params_of_a_step_are_in_its_own_run(config: RunConfig, work: Work) -> None:
    (training,) = (step for step in model_steps(config) if step.name == "train")
    steps = [replace(work.steps()[0], params=training.params)]
    work.steps = lambda: steps  # type: ignore[method-assign]
    run(config, until="a")
    client = mlflow.MlflowClient(tracking_uri=config.resolved_tracking.uri)
    experiment = client.get_experiment_by_name(config.resolved_tracking.experiment)
    (found,) = client.search_runs([experiment.experiment_id], filter_string="run_name = 'a'")
    assert found.data.params == training.params
    assert found.data.params["optimizer.learning_rate"] == "0.002"
    assert found.data.params["conditioning.groups"] == "[2, 4]"
    # which is what runs are compared by
    assert client.search_runs([experiment.experiment_id], filter_string="params.`optimizer.learning_rate` = '0.002'")


def test_an_input_that_changed_after_it_was_read_stops_the_run(config: RunConfig, work: Work) -> None:
    run(config)

    def changed(record: StepRecord) -> None:
        raise BadInputError(f"the list of {record.facts['name']} changed")

    steps = work.steps()
    steps[0] = Step(**{**vars(steps[0]), "check_done": changed})
    work.steps = lambda: steps  # type: ignore[method-assign]
    with pytest.raises(BadInputError, match="the list of a changed"):
        run(config)
