"""Which model a command means: a bundle folder, or a registered version."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from infra import storage
from infra.errors import BadInputError
from infra.model_registry import ModelRegistry
from infra.tracking import Tracker, TrackingConfig
from pipeline.config import load_run_config
from serving.model_source import find_bundle
from training.bundle import Bundle, load_bundle

REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)[/@](?P<version>[^/@]+)")


@contextmanager
def opened_bundle(model: str, *, tracking_uri: str | None, config: Path | None) -> Iterator[Bundle]:
    """Load the bundle that `model` names: a folder, or `models:/NAME@ALIAS`, or `models:/NAME/VERSION`.

    Raises:
        BadInputError: no such folder, model or version, or no MLflow is named.
    """
    if not model.startswith("models:/"):
        if not storage.exists(model):
            hint = "" if "/" in model else f"; if it is the name of a registered model, say models:/{model}@champion"
            raise BadInputError(f"there is no bundle folder {model!r}{hint}")
        with storage.localized(model) as folder:
            yield load_bundle(folder)
        return
    match = REGISTERED.fullmatch(model)
    if match is None:
        raise BadInputError(f"{model!r} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
    registry = ModelRegistry(tracker_of(tracking_uri=tracking_uri, config=config))
    with TemporaryDirectory(prefix="hyperclip-model-") as temporary:
        version = registry.version(match["name"], match["version"])
        yield load_bundle(find_bundle(registry.download_model(version, Path(temporary))))


def tracker_of(*, tracking_uri: str | None, config: Path | None) -> Tracker:
    """MLflow at the given address, or the one of a run configuration, or that of MLFLOW_TRACKING_URI.

    Raises:
        BadInputError: both are given, or none is, or there is no such database.
    """
    if tracking_uri and config:
        raise BadInputError("--tracking-uri and --config both name an MLflow; give one of them")
    tracking = load_run_config(config).resolved_tracking if config else None
    if tracking is None:
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise BadInputError(
                "which MLflow? Give --config with the run's configuration, or --tracking-uri, or set MLFLOW_TRACKING_URI"
            )
        tracking = TrackingConfig(uri=uri)
    if tracking.uri.startswith("sqlite:///") and not Path(tracking.uri.removeprefix("sqlite:///")).is_file():
        raise BadInputError(f"there is no MLflow database at {tracking.uri}")
    return Tracker(tracking)
