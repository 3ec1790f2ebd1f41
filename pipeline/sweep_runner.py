"""Running a sweep: the runs one after the other, each skipped where it is done, and then their comparison."""

from contextlib import ExitStack
from typing import Literal, Protocol

from infra import artefacts, storage
from infra.cluster import connected
from infra.config import StrictModel
from infra.tracking import Tracker
from pipeline.comparison import Comparison, Generated, compare
from pipeline.comparison_report import markdown, picture
from pipeline.runner import StepObserver, begin_tracking, ending, only_run_in, run_steps, state_uri
from pipeline.sweep_runs import Sweep, SweepRun, sweep_hash
from pipeline.sweep_steps import ACCURACIES_NAME, SetAccuracies, evaluation_step_name, metrics_of
from training.metrics_log import read_metrics
from training.model.registry import model_config

COMPARISON, STATE_NAME = "comparison", "sweep.json"
LAST_SHARE = 0.1
"""Share of the logged steps over which generated parameters are averaged: one batch tells little."""


class SweepObserver(StepObserver, Protocol):
    """Who shows a sweep to people."""

    def run_done_before(self, run: SweepRun, *, number: int, total: int) -> None: ...

    def run_begins(self, run: SweepRun, *, number: int, total: int) -> None: ...


class SweepState(StrictModel):
    """`sweeps/{name}/sweep.json`: the MLflow run that the runs of a sweep belong to."""

    schema_version: Literal[1] = 1
    run_id: str


class FinishedSweep(StrictModel):
    comparison: Comparison
    folder_uri: str
    run_id: str


def run_sweep(sweep: Sweep, observer: SweepObserver) -> FinishedSweep:
    """Run what is not done and compare all.

    Raises:
        HyperClipError: a run failed; what was done before stays done.
        BadInputError: another run uses the workspace.
    """
    common = sweep.common
    with only_run_in(common.workspace_uri), ExitStack() as stack:
        tracker = Tracker(common.resolved_tracking)
        run_id = _begin(sweep, tracker)
        with ending(tracker, run_id):
            for number, run in enumerate(sweep.runs, start=1):
                if run.state == "done" and storage.exists(state_uri(run.config)):
                    observer.run_done_before(run, number=number, total=len(sweep.runs))
                    continue
                observer.run_begins(run, number=number, total=len(sweep.runs))
                if any(entry.step.on_cluster and entry.record is None for entry in run.planned):
                    stack.enter_context(connected(common.cluster))  # once for all runs: the first is it that starts it
                _run_one(sweep, run, tracker, run_id, observer)
            comparison = compared(sweep)
            _write(sweep, comparison, tracker, run_id)
    return FinishedSweep(comparison=comparison, folder_uri=sweep.folder_uri, run_id=run_id)


def compared(sweep: Sweep) -> Comparison:
    """The comparison of runs that are all done."""
    results: dict[str, dict[int, dict[str, SetAccuracies]]] = {arm: {} for arm in sweep.config.arms}
    for run in sweep.runs:
        results[run.arm][run.seed] = accuracies_of(sweep, run)
    return compare(sweep.config.name, results, pairs=sweep.pairs, generated=_generated(sweep))


def accuracies_of(sweep: Sweep, run: SweepRun) -> dict[str, SetAccuracies]:
    """Of a run that is done, by evaluation set."""
    return {
        name: artefacts.read_model(storage.join(run.uri(evaluation_step_name(name)), ACCURACIES_NAME), SetAccuracies)
        for name in sweep.config.evaluate
    }


def _run_one(sweep: Sweep, run: SweepRun, tracker: Tracker, sweep_run_id: str, observer: StepObserver) -> None:
    identity = {"sweep": sweep.config.name, "arm": run.arm, "seed": str(run.seed)}
    state = begin_tracking(run.config, tracker, name=run.title, parent_run_id=sweep_run_id, identity=identity)
    with ending(tracker, state.run_id):
        run_steps(run.config, run.planned, tracker, state, observer)
        found = accuracies_of(sweep, run)
        metrics = {f"{name}.{metric}": value for name, one in found.items() for metric, value in metrics_of(one).items()}
        tracker.log_metrics(state.run_id, metrics)


def _generated(sweep: Sweep) -> dict[str, Generated]:
    found: dict[str, Generated] = {}
    for arm in sweep.config.arms:
        runs = [run for run in sweep.runs if run.arm == arm]
        if model_config(runs[0].config.training.model).hypernetwork is None:
            continue
        rows = []
        for run in runs:
            logged = read_metrics(run.uri("train"))
            rows += logged[-max(1, round(LAST_SHARE * len(logged))) :]
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in ("delta_rms", "delta_variation")}
        found[arm] = Generated(rms=mean["delta_rms"], variation=mean["delta_variation"])
    return found


def _begin(sweep: Sweep, tracker: Tracker) -> str:
    """The MLflow run of a sweep of this name: a changed sweep goes on in it."""
    uri = storage.join(sweep.folder_uri, STATE_NAME)
    if storage.exists(uri):
        run_id = artefacts.read_model(uri, SweepState).run_id
        if tracker.resume_run(run_id):
            return run_id
    run_id = tracker.start_run(sweep.config.name, tags={"sweep": sweep.config.name})
    storage.write_atomic(uri, SweepState(run_id=run_id).model_dump_json(indent=1))
    return run_id


def _write(sweep: Sweep, comparison: Comparison, tracker: Tracker, run_id: str) -> None:
    made: dict[str, bytes | str] = {
        f"{COMPARISON}.png": picture(comparison),
        f"{COMPARISON}.md": markdown(comparison),
        f"{COMPARISON}.json": comparison.model_dump_json(indent=1),
    }
    for name, content in made.items():
        storage.write_atomic(storage.join(sweep.folder_uri, name), content)
    with storage.localized(sweep.folder_uri) as folder:
        for name in made:
            tracker.log_artifact(run_id, folder / name)
    tracker.log_text(run_id, sweep.config.model_dump_json(indent=1), f"sweeps/{sweep_hash(sweep)[:12]}.json")
    tracker.log_metrics(run_id, comparison.metrics)
