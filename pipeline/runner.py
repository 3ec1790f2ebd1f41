"""Running the steps of a configuration: what is done is skipped, what was killed is continued."""

import fcntl
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Literal, Protocol

from pydantic import Field

from infra import artefacts, storage
from infra.cluster import connected
from infra.config import StrictModel
from infra.errors import BadInputError
from infra.tracking import Tracker
from pipeline.config import DatasetName, RunConfig
from pipeline.data_report import describe_step
from pipeline.data_steps import data_steps, dataset_order, raw_step_name, raw_uri
from pipeline.model_steps import model_steps
from pipeline.report import write_report
from pipeline.shipped_step import shipped_step
from pipeline.showcase import Showcase, read_showcase
from pipeline.showcase_steps import showcase_steps
from pipeline.steps import RECORD_NAME, PlannedStep, Progress, Step, StepContext, StepRecord, StepResult, plan_steps

logger = logging.getLogger(__name__)

RUNS = "runs"
"""Folder in the workspace for the `RunState` of each configuration."""


class StepObserver(Protocol):
    """Who shows a run to people."""

    def skipped(self, step: Step, record: StepRecord) -> None: ...

    def running(self, step: Step, *, so_far: str | None) -> "RunningStep":
        """A context that lasts as long as the step does.  `so_far`: where it goes on, None when it begins."""
        ...


class RunningStep(Protocol):
    def __enter__(self) -> Progress: ...

    def __exit__(self, *error: object) -> None: ...

    def finished(self, record: StepRecord) -> None: ...


class RunState(StrictModel):
    """`runs/{run hash}.json` in the workspace: the MLflow runs of one configuration, which a continued run goes on in."""

    schema_version: Literal[1] = 1
    run_id: str
    step_run_ids: dict[str, str] = Field(default_factory=dict)


class FinishedRun(StrictModel):
    """What a run made, and where."""

    records: dict[str, StepRecord]
    report_uri: str | None
    run_id: str
    showcase: Showcase | None = None
    """Where the run has one and went to its end."""


def plan(config: RunConfig) -> list[PlannedStep]:
    """Every step of a run with its address.

    Raises:
        BadInputError: an input of the run is not there.
    """
    steps = [step for name in dataset_order(config) for step in (*data_steps(config, name), describe_step(config, name))]
    steps += model_steps(config)
    if config.showcase:
        export, serve = showcase_steps(config.showcase)
        beside = [shipped_step(config, config.showcase)] if config.showcase.beside_shipped else []
        steps += [export, *beside, serve]
    return plan_steps(steps, config.workspace_uri)


def raw_folder(config: RunConfig, name: DatasetName) -> str:
    """Where a run's download or import leaves the raw shards of a dataset."""
    wanted = raw_step_name(config, name)
    return next(raw_uri(entry.output_uri) for entry in plan(config) if entry.step.name == wanted)


def run(config: RunConfig, observer: StepObserver, *, until: str | None = None) -> FinishedRun:
    """Run every step that is not done, in order; stop after the steps whose name starts with `until`.

    Raises:
        HyperClipError: a step failed; the steps before it stay done.
        BadInputError: another run uses the workspace, or an input changed after it was read.
    """
    planned = up_to(plan(config), until)
    with only_run_in(config.workspace_uri):
        tracker = Tracker(config.resolved_tracking)
        state = begin_tracking(config, tracker)
        with ending(tracker, state.run_id):
            records = run_steps(config, planned, tracker, state, observer)
            report_uri = write_report(config, planned, records, tracker, state.run_id) if until is None else None
    showcase = read_showcase({entry.step.name: entry.output_uri for entry in planned}) if until is None else None
    return FinishedRun(records=records, report_uri=report_uri, run_id=state.run_id, showcase=showcase)


def run_steps(
    config: RunConfig, planned: list[PlannedStep], tracker: Tracker, state: RunState, observer: StepObserver
) -> dict[str, StepRecord]:
    """Run what is not done; Ray is there from the first step that needs it to the end."""
    records: dict[str, StepRecord] = {}
    uris = {entry.step.name: entry.output_uri for entry in planned}
    with ExitStack() as stack:
        for entry in planned:
            step, record = entry.step, entry.record
            if record is not None:
                if step.check_done:
                    step.check_done(record)
                observer.skipped(step, record)
                records[step.name] = record
                continue
            so_far = entry.so_far
            running = observer.running(step, so_far=so_far)
            with running as progress:
                if step.on_cluster:
                    stack.enter_context(connected(config.cluster))
                context = StepContext(
                    config=config,
                    output_uri=entry.output_uri,
                    inputs={name: uris[name] for name in (*step.reads, *step.watches)},
                    facts={name: records[name].facts for name in step.reads},
                    tracker=tracker,
                    run_id=_step_run(config, tracker, state, step),
                    progress=progress,
                )
                records[step.name] = _run_step(entry, context, so_far=so_far)
            running.finished(records[step.name])
    return records


def _run_step(entry: PlannedStep, context: StepContext, *, so_far: str | None) -> StepRecord:
    started = time.monotonic()
    with ending(context.tracker, context.run_id):
        if entry.step.clean_start:
            storage.remove(entry.output_uri)
        storage.make_folder(entry.output_uri)
        storage.remove(storage.join(entry.output_uri, RECORD_NAME))  # one that goes on is not done until it is done again
        result: StepResult = entry.step.work(context)
        record = StepRecord(
            step=entry.step.name,
            summary=result.summary,
            facts=result.facts,
            inputs={name: uri.rpartition("/")[2] for name, uri in context.inputs.items()},
            seconds=round(time.monotonic() - started, 1),
            continued=so_far,
        )
        context.tracker.log_metrics(context.run_id, {**result.metrics, "seconds": record.seconds})
    storage.write_atomic(storage.join(entry.output_uri, RECORD_NAME), record.model_dump_json(indent=1))
    return record


@contextmanager
def ending(tracker: Tracker, run_id: str) -> Iterator[None]:
    """End an MLflow run with what became of it."""
    try:
        yield
    except BaseException as error:
        try:
            tracker.end_run(run_id, status="KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        except Exception as second:  # the first is what went wrong, and MLflow may be the reason of both
            logger.warning("MLflow was not told that run %s failed: %s", run_id, second)
        raise
    tracker.end_run(run_id)


def up_to(planned: list[PlannedStep], until: str | None) -> list[PlannedStep]:
    """The steps whose name starts with `until`, and those they read; all when it is None."""
    if until is None:
        return planned
    last = max((place for place, entry in enumerate(planned) if entry.step.name.startswith(until)), default=None)
    if last is None:
        names = ", ".join(entry.step.name for entry in planned)
        raise BadInputError(f"this configuration has no step {until!r}; its steps: {names}")
    needed: set[str] = {entry.step.name for entry in planned if entry.step.name.startswith(until)}
    for entry in reversed(planned[: last + 1]):
        if entry.step.name in needed:
            needed.update(entry.step.reads, entry.step.watches)
    return [entry for entry in planned if entry.step.name in needed]


def begin_tracking(
    config: RunConfig,
    tracker: Tracker,
    *,
    name: str | None = None,
    parent_run_id: str | None = None,
    identity: Mapping[str, str] | None = None,
) -> RunState:
    """The MLflow run of this configuration: the one a killed run began, or a new one.

    Args:
        name: of a new run; that of the configuration when absent.
        parent_run_id: the run it belongs to, where it is one of several.
        identity: params and tags that tell it from the others.
    """
    uri = state_uri(config)
    if storage.exists(uri):
        state = artefacts.read_model(uri, RunState)
        if tracker.resume_run(state.run_id):
            return state
    params = {
        "run_hash": config.run_hash,
        "model": config.training.model,
        "num_steps": config.training.num_steps,
        "contrastive_batch_size": config.training.contrastive_batch_size,
        "seed": config.training.seed,
        **(identity or {}),
    }
    run_id = tracker.start_run(name or config.name, parent_run_id=parent_run_id, params=params, tags=identity)
    state = RunState(run_id=run_id)
    tracker.log_text(state.run_id, config.model_dump_json(indent=1), "config.json")
    storage.write_atomic(uri, state.model_dump_json(indent=1))
    return state


def _step_run(config: RunConfig, tracker: Tracker, state: RunState, step: Step) -> str:
    known = state.step_run_ids.get(step.name)
    if known and tracker.resume_run(known):
        return known
    run_id = tracker.start_run(step.name, parent_run_id=state.run_id, params=step.params)
    state.step_run_ids[step.name] = run_id
    storage.write_atomic(state_uri(config), state.model_dump_json(indent=1))
    return run_id


def state_uri(config: RunConfig) -> str:
    """Where a configuration's `RunState` lies."""
    return storage.join(config.workspace_uri, RUNS, f"{config.run_hash[:12]}.json")


@contextmanager
def only_run_in(workspace_uri: str) -> Iterator[None]:
    """Two runs in one workspace would write the same folders; the lock of a killed run is gone with its process."""
    if not storage.is_local(workspace_uri):
        yield  # an object store has no such lock: give each run a workspace of its own there
        return
    try:
        storage.make_folder(workspace_uri)
        (storage.local_path(workspace_uri) / ".lock").touch()
    except OSError as error:
        raise BadInputError(f"cannot write into the workspace {workspace_uri}: {error.strerror}; choose another") from error
    with (storage.local_path(workspace_uri) / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInputError(f"another run uses {workspace_uri}; wait for it, or set another workspace") from error
        yield
