"""Which model a command means: a bundle folder, or a registered version."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from infra import storage
from infra.errors import BadInputError
from infra.tracking import Tracker, TrackingConfig
from serving.model_source import find_bundle
from training.bundle import Bundle, load_bundle

REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)[/@](?P<version>[^/@]+)")


@contextmanager
def opened_bundle(model: str, *, tracking_uri: str | None) -> Iterator[Bundle]:
    """Load the bundle that `model` names: a folder, or `models:/NAME@ALIAS`, or `models:/NAME/VERSION`.

    Raises:
        BadInputError: no such folder or version, or no MLflow server is named.
    """
    if not model.startswith("models:/"):
        with storage.localized(model) as folder:
            yield load_bundle(folder)
        return
    match = REGISTERED.fullmatch(model)
    if match is None:
        raise BadInputError(f"{model!r} is not of the form models:/NAME@ALIAS or models:/NAME/VERSION")
    tracker = tracker_at(tracking_uri)
    with TemporaryDirectory(prefix="hyperclip-model-") as temporary:
        version = tracker.version(match["name"], match["version"])
        yield load_bundle(find_bundle(tracker.download_model(version, Path(temporary))))


def tracker_at(tracking_uri: str | None) -> Tracker:
    """MLflow at the given address, or at MLFLOW_TRACKING_URI.

    Raises:
        BadInputError: neither is given.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise BadInputError("which MLflow? Give --tracking-uri, or set MLFLOW_TRACKING_URI")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise BadInputError(f"there is no MLflow database at {uri}")
    return Tracker(TrackingConfig(uri=uri))
