"""Fixtures that several files share because they take seconds to make."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.tracking import Tracker, TrackingConfig


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database as its first use leaves it: some fifty tables, seconds of work."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    Tracker(TrackingConfig(uri=f"sqlite:///{path}", experiment="Default"))
    return path


@pytest.fixture(scope="session")
def new_tracking(empty_mlflow: Path) -> Callable[[Path], TrackingConfig]:
    """Makes an MLflow store of its own in a folder."""

    def make(folder: Path) -> TrackingConfig:
        (folder / "mlflow").mkdir(parents=True)
        shutil.copy(empty_mlflow, folder / "mlflow" / "mlflow.db")
        return TrackingConfig(uri=f"sqlite:///{folder}/mlflow/mlflow.db", artifact_uri=f"{folder}/mlflow/artifacts")

    return make


@pytest.fixture(scope="module")
def tracker(new_tracking: Callable[[Path], TrackingConfig], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    """One store for a file of tests."""
    import mlflow

    before = mlflow.get_tracking_uri()
    yield Tracker(new_tracking(tmp_path_factory.mktemp("tracker")))
    mlflow.set_tracking_uri(before)
