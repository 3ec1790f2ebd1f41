"""Fixtures of the tests of storage, and of serving in this process."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest

if TYPE_CHECKING:
    from serving.config import ServingConfig


@pytest.fixture(params=["folder", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh place on each backend; `memory` stands for an object store."""
    if request.param == "memory":
        uri = f"memory://{uuid.uuid4().hex}"
        yield uri
        fsspec.filesystem("memory").store.clear()
    else:
        yield str(tmp_path) if request.param == "folder" else tmp_path.as_uri()


@pytest.fixture(scope="session")
def bundle_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tests.unit.serving_helpers import make_bundle  # here, for it brings torch

    return str(make_bundle(tmp_path_factory.mktemp("model") / "bundle"))


@pytest.fixture
def config(bundle_uri: str, tmp_path: Path) -> "ServingConfig":
    """One model, and an empty store of tasks."""
    from serving.config import ServingConfig
    from tests.unit.serving_helpers import LIMITS

    return ServingConfig(bundle_uri=bundle_uri, task_store_uri=str(tmp_path / "tasks"), limits=LIMITS)
