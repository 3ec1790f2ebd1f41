"""MLflow: where runs, metrics and models are recorded.  The only file that imports it.

The embedded default is SQLite and a folder; a server takes their place by its URI.  Credentials come from MLflow's own
environment variables (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN), never from a file of ours.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from infra.config import StrictModel
from infra.errors import BadInputError, HyperClipError

CANDIDATE = "candidate"
CHAMPION = "champion"
MAX_METRIC_ROWS, MAX_PARAMS = 1000, 100
"""MLflow takes no more in one call."""
_CHAMPIONS = "champions"
_MAX_CHAMPIONS = 100  # a tag of MLflow holds 5,000 characters
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


class ModelVersion(StrictModel):
    """A registered model version."""

    name: str
    version: str
    run_id: str
    source_uri: str
    tags: dict[str, str] = Field(default_factory=dict)
    """What is known about it: digest, accuracy, the pictures it was evaluated on."""


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
    """Runs, metrics and registered models of one experiment."""

    def __init__(self, config: TrackingConfig) -> None:
        """Raises TrackingUnavailableError when MLflow cannot be used; MLflow itself tries for minutes before."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow

        if config.uri.startswith("sqlite:///"):
            Path(config.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._mlflow = mlflow
        mlflow.set_tracking_uri(config.uri)
        self.config = config
        self._client = mlflow.MlflowClient(tracking_uri=config.uri)
        try:
            experiment = self._client.get_experiment_by_name(config.experiment)
            self.experiment_id = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(config.experiment, artifact_location=config.artifact_uri)
            )
        except mlflow.exceptions.MlflowException as error:
            reason = str(error).strip().splitlines()[0]
            raise TrackingUnavailableError(f"MLflow at {config.uri} cannot be used: {reason}") from error

    def start_run(self, name: str, *, parent_run_id: str | None = None, params: Mapping[str, Any] | None = None) -> str:
        """Create a run, a child when `parent_run_id` is given; returns its id.  MLflow cuts params after 6,000 characters."""
        from mlflow.entities import Param

        tags = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        run = self._client.create_run(self.experiment_id, run_name=name, tags=tags)
        everything = [Param(key, str(value)) for key, value in (params or {}).items()]
        for start in range(0, len(everything), MAX_PARAMS):
            self._client.log_batch(run.info.run_id, params=everything[start : start + MAX_PARAMS])
        return str(run.info.run_id)

    def resume_run(self, run_id: str) -> bool:
        """Whether the run is still known; if so it counts as running again."""
        try:
            self._client.update_run(run_id, status="RUNNING")
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            return False
        return True

    def end_run(self, run_id: str, *, status: str = "FINISHED") -> None:
        self._client.set_terminated(run_id, status=status)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self.log_metric_rows(run_id, [MetricRow(key, value, now, step) for key, value in metrics.items()])

    def log_metric_rows(self, run_id: str, rows: Sequence[MetricRow]) -> None:
        """Log up to `MAX_METRIC_ROWS` rows at once.  The same row again changes nothing in an SQL store: key, value, timestamp
        and step together are its primary key."""
        from mlflow.entities import Metric

        metrics = [Metric(row.key, float(row.value), row.timestamp_ms, row.step) for row in rows]
        self._client.log_batch(run_id, metrics=metrics)

    def logged_steps(self, run_id: str) -> dict[str, set[int]]:
        """The steps that a run has of each of its metrics."""
        keys = self._client.get_run(run_id).data.metrics
        return {key: {metric.step for metric in self._client.get_metric_history(run_id, key)} for key in keys}

    def artifact_names(self, run_id: str, folder: str) -> set[str]:
        """Paths of the artifacts directly in a folder of a run."""
        return {item.path for item in self._client.list_artifacts(run_id, folder)}

    def log_artifact(self, run_id: str, path: Path, *, folder: str | None = None) -> None:
        """Upload a file or a folder."""
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), artifact_path=folder)
        else:
            self._client.log_artifact(run_id, str(path), artifact_path=folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Store a text as an artifact."""
        self._client.log_text(run_id, text, name)

    @contextmanager
    def active(self, run_id: str) -> Iterator[None]:
        """Make a run the current one, for MLflow calls that know no run id."""
        with self._mlflow.start_run(run_id=run_id):
            yield
        self.resume_run(run_id)  # leaving the context ends the run; its owner decides when it ends

    def metric_history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) pairs in order of logging."""
        return [(m.step, m.value) for m in self._client.get_metric_history(run_id, key)]

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

        found = self._client.search_logged_models(
            [self.experiment_id], filter_string=_filter({"source_run_id": run_id}, tags=identity)
        )
        for model in found:
            if str(model.status) == "READY":
                return str(model.model_uri)
            self._client.delete_logged_model(model.model_id)
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

    # ---- registered models -------------------------------------------------------------------------------------------

    def register(self, name: str, *, model_uri: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """Register a logged model as a new version.  The tags are there from its first moment, so that `find_version` finds
        it whatever happens next."""
        version = self._mlflow.register_model(model_uri, name, tags=dict(tags))
        return ModelVersion(name=name, version=str(version.version), run_id=run_id, source_uri=model_uri, tags=dict(tags))

    def find_version(self, name: str, *, tags: Mapping[str, str]) -> ModelVersion | None:
        """The newest version with these tags, or None."""
        found = self._client.search_model_versions(_filter({"name": name}, tags=tags))
        whole = [version for version in found if version.status == "READY"]
        return self._as_version(max(whole, key=lambda version: int(version.version))) if whole else None

    def make_candidate(self, version: ModelVersion) -> None:
        """Point `candidate` at a version."""
        self._client.set_registered_model_alias(version.name, CANDIDATE, version.version)

    def version_of(self, name: str, alias: str) -> ModelVersion | None:
        """The version an alias points to, or None."""
        try:
            found = self._client.get_model_version_by_alias(name, alias)
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code not in _ABSENT:  # a wrong password or a dead server is not "no such alias"
                raise
            return None
        return self._as_version(found)

    def version(self, name: str, version: str) -> ModelVersion:
        """A version by number or by alias.

        Raises:
            BadInputError: no such model, or no such version of it; those that there are are named.
        """
        if not version.isdigit():
            if found := self.version_of(name, version):
                return found
            raise self._absent(name, f"under the alias {version!r}")
        try:
            return self._as_version(self._client.get_model_version(name, version))
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code not in _ABSENT:
                raise
            raise self._absent(name, version) from error

    # The tag `champions` lists the champions, oldest first, the present one last.  Each command below may be cut off between
    # two writes and run again: whenever the last of the list is not the champion, it is the one to go back to.

    def promote(self, name: str, version: str) -> ModelVersion:
        """Point `champion` at a version, remembering the one before for `rollback`."""
        chosen = self.version(name, version)
        present = self.version_of(name, CHAMPION)
        champions = self._champions(name)
        if present and champions[-1:] != [present.version]:  # someone moved the alias by hand
            champions.append(present.version)
            self._set_champions(name, champions)
        self._client.set_registered_model_alias(name, CHAMPION, chosen.version)
        if champions[-1:] != [chosen.version]:
            self._set_champions(name, [*champions, chosen.version])
        return chosen

    def rollback(self, name: str) -> ModelVersion:
        """Point `champion` back at the version before; a version deleted since is passed over.

        Raises:
            BadInputError: there is no champion, or none before it.
        """
        present = self.version(name, CHAMPION)
        champions = self._champions(name)
        known = {str(v.version) for v in self._client.search_model_versions(_filter({"name": name}))}
        while champions and (champions[-1] == present.version or champions[-1] not in known):
            champions.pop()
        if not champions:
            raise BadInputError(f"model {name!r} version {present.version} is the first champion: there is none to go back to")
        previous = self.version(name, champions[-1])
        self._set_champions(name, champions)  # first: if the alias does not follow, the next rollback moves it, and no further
        self._client.set_registered_model_alias(name, CHAMPION, previous.version)
        return previous

    def _champions(self, name: str) -> list[str]:
        return [v for v in self._client.get_registered_model(name).tags.get(_CHAMPIONS, "").split(",") if v]

    def _set_champions(self, name: str, versions: list[str]) -> None:
        self._client.set_registered_model_tag(name, _CHAMPIONS, ",".join(versions[-_MAX_CHAMPIONS:]))

    def tag_version(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(version.name, version.version, key, value)

    def download_model(self, version: ModelVersion, folder: Path) -> Path:
        """Fetch the files of a registered version into a folder; returns the folder of the MLflow model."""
        uri = f"models:/{version.name}/{version.version}"
        return Path(
            self._mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=self.config.uri)
        )

    def _as_version(self, found: Any) -> ModelVersion:
        return ModelVersion(
            name=found.name,
            version=str(found.version),
            run_id=found.run_id or "",
            source_uri=found.source,
            tags={key: str(value) for key, value in found.tags.items()},
        )

    def _absent(self, name: str, version: str) -> BadInputError:
        if not self._client.search_registered_models(_filter({"name": name})):
            models = ", ".join(sorted(model.name for model in self._client.search_registered_models())) or "none"
            return BadInputError(f"there is no model {name!r} in {self.config.uri}; models: {models}")
        found = self._client.search_model_versions(_filter({"name": name}))
        versions = ", ".join(sorted((str(v.version) for v in found), key=int)) or "none"
        return BadInputError(f"model {name!r} has no version {version}; versions: {versions}")


def _filter(attributes: Mapping[str, str], *, tags: Mapping[str, str] | None = None) -> str:
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
