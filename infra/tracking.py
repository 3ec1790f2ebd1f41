"""MLflow: where runs, their metrics and their artifacts are recorded.  Registered models: `model_registry.py`.

The embedded default is SQLite and a folder; a server takes their place by its URI.  Credentials come from MLflow's own
environment variables (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN), never from a file of ours.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.config import StrictModel
from infra.errors import BadInputError, HyperClipError

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

MAX_METRIC_ROWS, MAX_PARAMS = 1000, 100
"""MLflow takes no more in one call."""
# MLflow's codes for a thing that is not there.  An alias that is not there counts as an invalid value; and a server with logins
# says "permission denied" to everyone but its administrator, so that the answer does not tell what exists.
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED")


class TrackingConfig(StrictModel):
    """Where MLflow keeps its records."""

    uri: str
    """`sqlite:////absolute/path.db`, or `https://server`."""
    artifact_uri: str | None = None
    """Folder or object store for artifacts of a new experiment; the server's own choice when absent."""
    experiment: str = "hyperclip"


class MetricRow(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    timestamp_ms: int
    """When it was measured, not when it was sent."""
    step: int


class TrackingUnavailableError(HyperClipError):
    """MLflow does not answer, or does not let us in."""


class Tracker:
    """Runs of one experiment: metrics, artifacts, logged models."""

    def __init__(self, config: TrackingConfig) -> None:
        """Raises TrackingUnavailableError when MLflow cannot be used; MLflow itself tries for minutes before."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines at the end of every step
        import mlflow

        if config.uri.startswith("sqlite:///"):
            Path(config.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._mlflow = mlflow
        mlflow.set_tracking_uri(config.uri)
        self.config = config
        self.client = mlflow.MlflowClient(tracking_uri=config.uri)
        try:
            experiment = self.client.get_experiment_by_name(config.experiment)
            self.experiment_id = (
                experiment.experiment_id
                if experiment
                else self.client.create_experiment(config.experiment, artifact_location=config.artifact_uri)
            )
        except mlflow.exceptions.MlflowException as error:
            reason = str(error).strip().splitlines()[0]
            raise TrackingUnavailableError(f"MLflow at {config.uri} cannot be used: {reason}") from error

    def start_run(
        self,
        name: str,
        *,
        parent_run_id: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Create a run, a child when `parent_run_id` is given; returns its id.  MLflow cuts params after 6,000 characters."""
        from mlflow.entities import Param

        parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        tags = {**(tags or {}), **parent}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        everything = [Param(key, str(value)) for key, value in (params or {}).items()]
        for start in range(0, len(everything), MAX_PARAMS):
            self.client.log_batch(run.info.run_id, params=everything[start : start + MAX_PARAMS])
        return str(run.info.run_id)

    def resume_run(self, run_id: str) -> bool:
        """Whether the run is still known; if so it counts as running again."""
        try:
            self.client.update_run(run_id, status="RUNNING")
        except self._mlflow.exceptions.MlflowException as error:
            if not means_absent(error):
                raise
            return False
        return True

    def end_run(self, run_id: str, *, status: str = "FINISHED") -> None:
        self.client.set_terminated(run_id, status=status)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self.log_metric_rows(run_id, [MetricRow(key, value, now, step) for key, value in metrics.items()])

    def log_metric_rows(self, run_id: str, rows: Sequence[MetricRow]) -> None:
        """Log up to `MAX_METRIC_ROWS` rows at once.  The same row again changes nothing in an SQL store: key, value, timestamp
        and step together are its primary key."""
        from mlflow.entities import Metric

        metrics = [Metric(row.key, float(row.value), row.timestamp_ms, row.step) for row in rows]
        self.client.log_batch(run_id, metrics=metrics)

    def logged_steps(self, run_id: str) -> dict[str, set[int]]:
        """The steps that a run has of each of its metrics."""
        keys = self.client.get_run(run_id).data.metrics
        return {key: {metric.step for metric in self.client.get_metric_history(run_id, key)} for key in keys}

    def artifact_names(self, run_id: str, folder: str) -> set[str]:
        """Paths of the artifacts directly in a folder of a run."""
        return {item.path for item in self.client.list_artifacts(run_id, folder)}

    def log_artifact(self, run_id: str, path: Path, *, folder: str | None = None) -> None:
        """Upload a file or a folder."""
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), artifact_path=folder)
        else:
            self.client.log_artifact(run_id, str(path), artifact_path=folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Store a text as an artifact."""
        self.client.log_text(run_id, text, name)

    @contextmanager
    def active(self, run_id: str) -> Iterator[None]:
        """Make a run the current one, for MLflow calls that know no run id."""
        with self._mlflow.start_run(run_id=run_id):
            yield
        self.resume_run(run_id)  # leaving the context ends the run; its owner decides when it ends

    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) pairs in order of logging."""
        return [(m.step, m.value) for m in self.client.get_metric_history(run_id, key)]

    def log_model(
        self, run_id: str, *, code: Path, artifacts: Mapping[str, Path], input_example: Any, identity: Mapping[str, str]
    ) -> str:
        """Log a model whose loading code is a file ("models from code": nothing is pickled); returns its URI.

        A model of this run with the same `identity` is logged once: a whole one is found again, and one that a killed call
        left half-written is removed (MLflow cannot link it to its run a second time).

        Args:
            code: defines `SIGNATURE` and calls `mlflow.models.set_model`.
            identity: tags that tell this model from the others of the run, e.g. its digest; they are set when it is created.
        """
        import importlib.metadata
        import runpy

        found = self.client.search_logged_models(
            [self.experiment_id], filter_string=search_filter({"source_run_id": run_id}, tags=identity)
        )
        for model in found:
            if str(model.status) == "READY":
                return str(model.model_uri)
            self.client.delete_logged_model(model.model_id)
        requirements = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "timm", "safetensors")]
        with self.active(run_id), _no_advice_on_type_hints():
            signature = runpy.run_path(str(code))["SIGNATURE"]
            info = self._mlflow.pyfunc.log_model(
                name="bundle",
                python_model=str(code),
                artifacts={name: str(path) for name, path in artifacts.items()},
                signature=signature,
                input_example=input_example,
                pip_requirements=requirements,  # named, or MLflow would load the model in a new process to find out
                tags=dict(identity),
            )
        return str(info.model_uri)


def means_absent(error: "MlflowException") -> bool:
    """Whether MLflow says that there is no such thing; a wrong password or a dead server is another matter."""
    return error.error_code in _ABSENT


def search_filter(attributes: Mapping[str, str], *, tags: Mapping[str, str] | None = None) -> str:
    """A search expression of MLflow: all of these are so.

    Raises:
        BadInputError: a value holds a quote, which the expression cannot carry.
    """
    wanted = {**attributes, **{f"tags.`{key}`": value for key, value in (tags or {}).items()}}
    if quoted := [value for value in wanted.values() if "'" in value]:
        raise BadInputError(f"MLflow cannot look for {quoted[0]!r}: names and tags must not hold a quote")
    return " AND ".join(f"{key} = '{value}'" for key, value in wanted.items())


@contextmanager
def _no_advice_on_type_hints() -> Iterator[None]:
    """MLflow asks for type hints in place of the signature that is given, under a warning filter of its own."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_others(message: Warning | str, *rest: Any, **named: Any) -> None:
            if "Add type hints" not in str(message):
                show(message, *rest, **named)

        warnings.showwarning = show_others
        yield
