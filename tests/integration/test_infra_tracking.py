"""MLflow runs as we use them, against a real SQLite store and a folder of artifacts."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from infra.tracking import Tracker, TrackingConfig, TrackingUnavailableError

pytestmark = pytest.mark.integration


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


def test_a_server_with_logins_hides_runs_that_it_does_not_have(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: Any, **kwargs: Any) -> None:  # what MLflow 3.17 answers to a user who is not its administrator
        raise mlflow.exceptions.MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(tracker.client, "update_run", denied)
    assert not tracker.resume_run("a")


def test_a_server_that_cannot_be_reached_is_not_an_absent_run(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise mlflow.exceptions.MlflowException("connection refused")

    monkeypatch.setattr(tracker.client, "update_run", refused)
    with pytest.raises(mlflow.exceptions.MlflowException, match="connection refused"):
        tracker.resume_run("a")


def test_a_store_that_does_not_answer_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # each retry waits twice as long as the one before
    before = mlflow.get_tracking_uri()
    with pytest.raises(TrackingUnavailableError, match=r"^MLflow at http://127.0.0.1:9 cannot be used: .+$"):
        Tracker(TrackingConfig(uri="http://127.0.0.1:9"))
    mlflow.set_tracking_uri(before)
