"""Which model a command means: a bundle folder, a registered version, or the one that is shipped."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.markup import escape

from infra import storage
from infra.errors import BadInputError
from infra.model_registry import CHAMPION, ModelRegistry
from infra.tracking import Tracker, TrackingConfig
from pipeline.config import load_run_config
from pipeline.console import err
from serving.model_source import find_bundle
from training.bundle import Bundle, load_bundle
from training.shipped import MODEL_PAGE, shipped_model_folder, shipped_model_name

REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)[/@](?P<version>[^/@]+)")


@contextmanager
def opened_bundle(
    model: str | None, *, tracking_uri: str | None, config: Path | None, named_by: str = "--model"
) -> Iterator[Bundle]:
    """Load the bundle that is meant, as `bundle_folder` finds it."""
    with bundle_folder(model, tracking_uri=tracking_uri, config=config, named_by=named_by) as folder:
        yield load_bundle(folder)


@contextmanager
def bundle_folder(
    model: str | None, *, tracking_uri: str | None, config: Path | None, named_by: str = "--model"
) -> Iterator[Path]:
    """The folder of the bundle that is meant: of the model named; else of the champion of the run; else the shipped one.

    Args:
        model: a folder, or `models:/NAME@ALIAS`, or `models:/NAME/VERSION`.
        config: the run in whose MLflow registered models lie.
        named_by: how another model is named, told where the shipped one is used.

    Raises:
        BadInputError: no such folder, model or version, or no MLflow is named.
    """
    if model is None and config is None:
        err.print(f"[dim]{escape(shipped_model_is_used(shipped_model_name(), named_by=named_by))}[/]")
        yield shipped_model_folder()
        return
    if model is None:
        assert config is not None
        model = f"models:/{load_run_config(config).name}@{CHAMPION}"
    if not model.startswith("models:/"):
        if not storage.exists(model):
            hint = "" if "/" in model else f"; if it is the name of a registered model, say models:/{model}@champion"
            raise BadInputError(f"there is no bundle folder {model!r}{hint}")
        with storage.localized(model) as folder:
            yield folder
        return
    match = REGISTERED.fullmatch(model)
    if match is None:
        raise BadInputError(f"{model!r} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
    registry = ModelRegistry(tracker_of(tracking_uri=tracking_uri, config=config))
    with TemporaryDirectory(prefix="hyperclip-model-") as temporary:
        version = registry.version(match["name"], match["version"])
        yield find_bundle(registry.download_model(version, Path(temporary)))


def shipped_model_is_used(name: str, *, named_by: str) -> str:
    return f"using the shipped model {name} ({MODEL_PAGE}); name another with {named_by}"


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
