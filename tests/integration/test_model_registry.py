"""Registered models as we use them, against a real MLflow: SQLite and a folder of artifacts."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from infra.errors import BadInputError
from infra.model_registry import CANDIDATE, CHAMPION, ModelRegistry, ModelVersion
from infra.tracking import Tracker

pytestmark = pytest.mark.integration


class Echo(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The smallest model MLflow will register."""

    def predict(self, model_input: list[str]) -> list[str]:
        return model_input


def log_model(tracker: Tracker) -> tuple[str, str]:
    """Run id and model URI of a logged model."""
    run_id = tracker.start_run("train")
    with tracker.active(run_id):
        logged = mlflow.pyfunc.log_model(name="model", python_model=Echo(), pip_requirements=[])
    return run_id, logged.model_uri


@pytest.fixture
def registry(tracker: Tracker) -> ModelRegistry:
    return ModelRegistry(tracker)


@pytest.fixture
def versions(tracker: Tracker, registry: ModelRegistry, request: pytest.FixtureRequest) -> list[ModelVersion]:
    """Three registered versions of a model of the test's own."""
    run_id, model_uri = log_model(tracker)
    name = request.node.name
    return [registry.register(name, model_uri=model_uri, run_id=run_id, tags={"number": str(number)}) for number in (1, 2, 3)]


def test_a_version_is_found_by_the_tags_it_was_registered_with(registry: ModelRegistry, versions: list[ModelVersion]) -> None:
    name = versions[0].name
    found = registry.find_version(name, tags={"number": "2"})
    assert found is not None
    assert found.version == "2"
    assert registry.find_version(name, tags={"number": "4"}) is None
    assert registry.find_version("nobody", tags={"number": "2"}) is None
    assert versions[2] in registry.versions_with({"number": "3"})  # of any model
    assert registry.versions_with({"number": "4"}) == []
    twin = registry.register(name, model_uri=versions[0].source_uri, run_id=versions[0].run_id, tags={"number": "2"})
    assert registry.find_version(name, tags={"number": "2"}) == twin


def test_a_version_becomes_the_candidate(registry: ModelRegistry, versions: list[ModelVersion]) -> None:
    name = versions[0].name
    for version in versions:
        registry.make_candidate(version)
    assert [version.version for version in versions] == ["1", "2", "3"]
    candidate = registry.version_of(name, CANDIDATE)
    assert candidate is not None
    assert candidate.version == "3"
    assert candidate.run_id == versions[2].run_id
    assert registry.version_of(name, CHAMPION) is None
    assert registry.version(name, CANDIDATE) == candidate


def test_promotion_moves_the_champion_and_rollback_brings_the_one_before(
    registry: ModelRegistry, versions: list[ModelVersion]
) -> None:
    name = versions[0].name
    registry.make_candidate(versions[2])
    for version in ("1", "2", CANDIDATE):
        registry.promote(name, version)
    assert registry.version(name, CHAMPION).version == "3"
    assert registry.rollback(name).version == "2"
    assert registry.rollback(name).version == "1"
    assert registry.version(name, CHAMPION).version == "1"
    with pytest.raises(BadInputError, match="none to go back to"):
        registry.rollback(name)
    assert registry.version(name, CHAMPION).version == "1"


def test_rollback_follows_the_order_of_promotions_when_a_version_comes_twice(
    registry: ModelRegistry, versions: list[ModelVersion]
) -> None:
    name = versions[0].name
    for version in ("1", "2", "1"):
        registry.promote(name, version)
    assert registry.rollback(name).version == "2"
    assert registry.rollback(name).version == "1"
    with pytest.raises(BadInputError, match="none to go back to"):
        registry.rollback(name)


def test_rollback_passes_over_a_deleted_version(
    tracker: Tracker, registry: ModelRegistry, versions: list[ModelVersion]
) -> None:
    name = versions[0].name
    for version in ("1", "2", "3"):
        registry.promote(name, version)
    mlflow.MlflowClient(tracking_uri=tracker.config.uri).delete_model_version(name, "2")
    assert registry.rollback(name).version == "1"


def test_a_promotion_cut_off_before_the_alias_moved_does_no_harm(
    tracker: Tracker, registry: ModelRegistry, versions: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = versions[0].name
    registry.promote(name, "1")
    registry.promote(name, "2")

    def refused(*args: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as cut:
        cut.setattr(tracker.client, "set_registered_model_alias", refused)
        with pytest.raises(ConnectionError):
            registry.promote(name, "3")
    assert registry.version(name, CHAMPION).version == "2"
    assert registry.rollback(name).version == "1"


def test_promoting_the_champion_again_changes_nothing(registry: ModelRegistry, versions: list[ModelVersion]) -> None:
    name = versions[0].name
    for version in ("1", "2", "2"):
        registry.promote(name, version)
    assert registry.rollback(name).version == "1"


def test_rollback_without_a_champion_is_refused(registry: ModelRegistry, versions: list[ModelVersion]) -> None:
    with pytest.raises(BadInputError, match="has no version under the alias 'champion'; versions: 1, 2, 3"):
        registry.rollback(versions[0].name)


@pytest.mark.parametrize("version", ["99", "winner"])
def test_an_unknown_version_is_refused_with_the_known_ones(
    registry: ModelRegistry, versions: list[ModelVersion], version: str
) -> None:
    with pytest.raises(BadInputError, match=f"{version}.*; versions: 1, 2, 3"):
        registry.promote(versions[0].name, version)


@pytest.mark.parametrize("version", ["1", CHAMPION])
def test_an_unknown_model_is_refused_with_the_known_ones(
    registry: ModelRegistry, versions: list[ModelVersion], version: str
) -> None:
    assert registry.version_of("nobody", CHAMPION) is None
    with pytest.raises(BadInputError, match=r"there is no model 'nobody' in .*; models: ") as caught:
        registry.version("nobody", version)
    assert versions[0].name in str(caught.value)


def test_tags_stay_with_the_version(registry: ModelRegistry, versions: list[ModelVersion]) -> None:
    registry.tag_version(versions[1], {"top1": "0.3"})
    assert registry.version(versions[1].name, "2").tags == {"number": "2", "top1": "0.3"}
    assert registry.version(versions[1].name, "1").tags == {"number": "1"}


def test_a_version_is_downloaded_whole(registry: ModelRegistry, versions: list[ModelVersion], tmp_path: Path) -> None:
    folder = registry.download_model(versions[0], tmp_path)
    assert (folder / "MLmodel").is_file()
    assert folder.is_relative_to(tmp_path)


def test_a_server_with_logins_hides_what_it_does_not_have(
    tracker: Tracker, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: Any, **kwargs: Any) -> None:  # what MLflow 3.17 answers to a user who is not its administrator
        raise mlflow.exceptions.MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(tracker.client, "get_model_version_by_alias", denied)
    assert registry.version_of("m", CHAMPION) is None


def test_a_server_that_cannot_be_reached_is_not_an_absent_model(
    tracker: Tracker, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise mlflow.exceptions.MlflowException("connection refused")

    monkeypatch.setattr(tracker.client, "get_model_version_by_alias", refused)
    monkeypatch.setattr(tracker.client, "get_model_version", refused)
    for ask in (lambda: registry.version_of("m", CHAMPION), lambda: registry.version("m", "1")):
        with pytest.raises(mlflow.exceptions.MlflowException, match="connection refused"):
            ask()
