"""MLflow as we use it, against a real SQLite store and a folder of artifacts."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from infra.errors import BadInputError
from infra.tracking import CANDIDATE, CHAMPION, ModelVersion, Tracker, TrackingConfig, TrackingUnavailableError

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
def versions(tracker: Tracker, request: pytest.FixtureRequest) -> list[ModelVersion]:
    """Three registered versions of a model of the test's own."""
    run_id, model_uri = log_model(tracker)
    name = request.node.name
    return [tracker.register(name, model_uri=model_uri, run_id=run_id, tags={"number": str(number)}) for number in (1, 2, 3)]


def test_an_experiment_is_made_once(tracker: Tracker) -> None:
    assert Tracker(tracker.config).experiment_id == tracker.experiment_id


def test_runs_form_a_tree(tracker: Tracker) -> None:
    parent = tracker.start_run("run", params={"config_hash": "abc", "steps": 3})
    child = tracker.start_run("train", parent_run_id=parent)
    tracker.end_run(child)
    tracker.end_run(parent, status="FAILED")
    client = mlflow.MlflowClient(tracking_uri=tracker.config.uri)
    assert client.get_run(parent).data.params == {"config_hash": "abc", "steps": "3"}
    assert client.get_run(parent).info.status == "FAILED"
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == parent
    assert client.get_run(child).info.status == "FINISHED"


def test_a_run_is_resumed_if_it_is_known(tracker: Tracker) -> None:
    run_id = tracker.start_run("run")
    tracker.end_run(run_id, status="FAILED")
    assert tracker.resume_run(run_id)
    assert mlflow.MlflowClient(tracking_uri=tracker.config.uri).get_run(run_id).info.status == "RUNNING"
    assert not tracker.resume_run("0" * 32)


def test_metrics_keep_their_history(tracker: Tracker) -> None:
    run_id = tracker.start_run("train")
    for step in (1, 2, 3):
        tracker.log_metrics(run_id, {"loss": 1 / step, "lr": 0.1}, step=step)
    assert tracker.metric_history(run_id, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert tracker.metric_history(run_id, "unheard of") == []


def test_a_file_and_a_folder_are_uploaded(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start_run("run")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.json").write_text("{}")
    tracker.log_artifact(run_id, tmp_path / "report" / "a.json")
    tracker.log_artifact(run_id, tmp_path / "report", folder="all")
    client = mlflow.MlflowClient(tracking_uri=tracker.config.uri)
    assert [item.path for item in client.list_artifacts(run_id)] == ["a.json", "all"]
    assert [item.path for item in client.list_artifacts(run_id, "all")] == ["all/a.json"]


def test_leaving_the_active_run_does_not_end_it(tracker: Tracker) -> None:
    run_id = tracker.start_run("train")
    with tracker.active(run_id):
        assert mlflow.active_run().info.run_id == run_id
    assert mlflow.active_run() is None
    assert mlflow.MlflowClient(tracking_uri=tracker.config.uri).get_run(run_id).info.status == "RUNNING"


def test_a_version_is_found_by_the_tags_it_was_registered_with(tracker: Tracker, versions: list[ModelVersion]) -> None:
    name = versions[0].name
    found = tracker.find_version(name, tags={"number": "2"})
    assert found is not None
    assert found.version == "2"
    assert tracker.find_version(name, tags={"number": "4"}) is None
    assert tracker.find_version("nobody", tags={"number": "2"}) is None
    twin = tracker.register(name, model_uri=versions[0].source_uri, run_id=versions[0].run_id, tags={"number": "2"})
    assert tracker.find_version(name, tags={"number": "2"}) == twin


def test_a_version_becomes_the_candidate(tracker: Tracker, versions: list[ModelVersion]) -> None:
    name = versions[0].name
    for version in versions:
        tracker.make_candidate(version)
    assert [version.version for version in versions] == ["1", "2", "3"]
    candidate = tracker.version_of(name, CANDIDATE)
    assert candidate is not None
    assert candidate.version == "3"
    assert candidate.run_id == versions[2].run_id
    assert tracker.version_of(name, CHAMPION) is None
    assert tracker.version(name, CANDIDATE) == candidate


def test_promotion_moves_the_champion_and_rollback_brings_the_one_before(
    tracker: Tracker, versions: list[ModelVersion]
) -> None:
    name = versions[0].name
    tracker.make_candidate(versions[2])
    for version in ("1", "2", CANDIDATE):
        tracker.promote(name, version)
    assert tracker.version(name, CHAMPION).version == "3"
    assert tracker.rollback(name).version == "2"
    assert tracker.rollback(name).version == "1"
    assert tracker.version(name, CHAMPION).version == "1"
    with pytest.raises(BadInputError, match="none to go back to"):
        tracker.rollback(name)
    assert tracker.version(name, CHAMPION).version == "1"


def test_rollback_follows_the_order_of_promotions_when_a_version_comes_twice(
    tracker: Tracker, versions: list[ModelVersion]
) -> None:
    name = versions[0].name
    for version in ("1", "2", "1"):
        tracker.promote(name, version)
    assert tracker.rollback(name).version == "2"
    assert tracker.rollback(name).version == "1"
    with pytest.raises(BadInputError, match="none to go back to"):
        tracker.rollback(name)


def test_rollback_passes_over_a_deleted_version(tracker: Tracker, versions: list[ModelVersion]) -> None:
    name = versions[0].name
    for version in ("1", "2", "3"):
        tracker.promote(name, version)
    mlflow.MlflowClient(tracking_uri=tracker.config.uri).delete_model_version(name, "2")
    assert tracker.rollback(name).version == "1"


def test_a_promotion_cut_off_before_the_alias_moved_does_no_harm(
    tracker: Tracker, versions: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = versions[0].name
    tracker.promote(name, "1")
    tracker.promote(name, "2")

    def refused(*args: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as cut:
        cut.setattr(tracker._client, "set_registered_model_alias", refused)
        with pytest.raises(ConnectionError):
            tracker.promote(name, "3")
    assert tracker.version(name, CHAMPION).version == "2"
    assert tracker.rollback(name).version == "1"


def test_promoting_the_champion_again_changes_nothing(tracker: Tracker, versions: list[ModelVersion]) -> None:
    name = versions[0].name
    for version in ("1", "2", "2"):
        tracker.promote(name, version)
    assert tracker.rollback(name).version == "1"


def test_rollback_without_a_champion_is_refused(tracker: Tracker, versions: list[ModelVersion]) -> None:
    with pytest.raises(BadInputError, match="has no version under the alias 'champion'; versions: 1, 2, 3"):
        tracker.rollback(versions[0].name)


@pytest.mark.parametrize("version", ["99", "winner"])
def test_an_unknown_version_is_refused_with_the_known_ones(
    tracker: Tracker, versions: list[ModelVersion], version: str
) -> None:
    with pytest.raises(BadInputError, match=f"{version}.*; versions: 1, 2, 3"):
        tracker.promote(versions[0].name, version)


@pytest.mark.parametrize("version", ["1", CHAMPION])
def test_an_unknown_model_is_refused_with_the_known_ones(tracker: Tracker, versions: list[ModelVersion], version: str) -> None:
    assert tracker.version_of("nobody", CHAMPION) is None
    with pytest.raises(BadInputError, match=r"there is no model 'nobody' in .*; models: ") as caught:
        tracker.version("nobody", version)
    assert versions[0].name in str(caught.value)


def test_tags_stay_with_the_version(tracker: Tracker, versions: list[ModelVersion]) -> None:
    tracker.tag_version(versions[1], {"top1": "0.3"})
    assert tracker.version(versions[1].name, "2").tags == {"number": "2", "top1": "0.3"}
    assert tracker.version(versions[1].name, "1").tags == {"number": "1"}


def test_a_version_is_downloaded_whole(tracker: Tracker, versions: list[ModelVersion], tmp_path: Path) -> None:
    folder = tracker.download_model(versions[0], tmp_path)
    assert (folder / "MLmodel").is_file()
    assert folder.is_relative_to(tmp_path)


def test_a_server_with_logins_hides_what_it_does_not_have(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: Any, **kwargs: Any) -> None:  # what MLflow 3.17 answers to a user who is not its administrator
        raise mlflow.exceptions.MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(tracker._client, "get_model_version_by_alias", denied)
    monkeypatch.setattr(tracker._client, "update_run", denied)
    assert tracker.version_of("m", CHAMPION) is None
    assert not tracker.resume_run("a")


def test_a_server_that_cannot_be_reached_is_not_an_absent_model(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise mlflow.exceptions.MlflowException("connection refused")

    monkeypatch.setattr(tracker._client, "get_model_version_by_alias", refused)
    monkeypatch.setattr(tracker._client, "get_model_version", refused)
    monkeypatch.setattr(tracker._client, "update_run", refused)
    for ask in (lambda: tracker.version_of("m", CHAMPION), lambda: tracker.version("m", "1"), lambda: tracker.resume_run("a")):
        with pytest.raises(mlflow.exceptions.MlflowException, match="connection refused"):
            ask()


def test_a_store_that_does_not_answer_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # each retry waits twice as long as the one before
    before = mlflow.get_tracking_uri()
    with pytest.raises(TrackingUnavailableError, match=r"^MLflow at http://127.0.0.1:9 cannot be used: .+$"):
        Tracker(TrackingConfig(uri="http://127.0.0.1:9"))
    mlflow.set_tracking_uri(before)
