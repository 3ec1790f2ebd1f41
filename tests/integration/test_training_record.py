"""What a real training run leaves in MLflow: its metrics once, the manifest of each checkpoint, evaluations on the way."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from infra.tracking import MetricRow, Tracker, TrackingConfig
from tests.training_runs import NUM_STEPS, losses, request_of, run_worker, small_config, write_shard
from training.checkpoint import CheckpointManifest, load_checkpoint
from training.config import TrainRequest
from training.metrics_log import MetricsLog, metrics_uri, read_metrics

pytestmark = pytest.mark.integration
TRACE = Path(__file__).parents[1] / "golden" / "loss_trace.json"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    root = tmp_path_factory.mktemp("mlflow")
    return Tracker(TrackingConfig(uri=f"sqlite:///{root}/mlflow.db", artifact_uri=f"{root}/artifacts"))


def rows_in_mlflow(tracker: Tracker, run_id: str) -> Counter[tuple[str, int, float]]:
    found: Counter[tuple[str, int, float]] = Counter()
    for key in tracker.logged_steps(run_id):
        found.update((key, step, value) for step, value in tracker.metric_history(run_id, key))
    return found


def rows_on_disk(output: Path) -> Counter[tuple[str, int, float]]:
    found: Counter[tuple[str, int, float]] = Counter()
    for line in Path(metrics_uri(str(output))).read_text().splitlines():
        record = json.loads(line)
        found.update((key, record["step"], value) for key, value in record.items() if key not in ("step", "timestamp_ms"))
    return found


def test_a_run_is_recorded_and_evaluated_without_changing_its_numbers(tracker: Tracker, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = small_config({"evaluation": {"every_steps": NUM_STEPS, "num_tasks": 4}})
    run_id = tracker.start_run("train")
    request = request_of(config, write_shard(tmp_path / "shards"), output, tracking=tracker.config, run_id=run_id)
    held_out = write_shard(tmp_path / "held-out", split="evaluation", num_samples=40)
    status, said = run_worker(request.rebuilt(evaluation_shards_uri=str(held_out)))
    assert status == 0, said
    found = rows_in_mlflow(tracker, run_id)
    assert found == rows_on_disk(output)
    assert {step for key, step, _ in found if key == "evaluation.accuracy_10_way.specialized"} == {NUM_STEPS}
    assert {"data_wait_share", "step_seconds", "samples_per_second", "grad_norm", "peak_memory_gib"} <= set(
        read_metrics(str(output))[-1]
    )
    # other processors round differently; an evaluation that touched the run's generators would change it by far more
    assert losses(output) == pytest.approx(json.loads(TRACE.read_text()), rel=0.02)
    assert tracker.artifact_names(run_id, "checkpoints") == {f"checkpoints/step-{s:08d}.json" for s in (5, NUM_STEPS)}
    manifest = CheckpointManifest.model_validate_json((output / "checkpoint-manifests/step-00000010.json").read_bytes())
    assert manifest.state == load_checkpoint(manifest.uri)[0]


def test_the_same_row_again_changes_nothing(tracker: Tracker) -> None:
    run_id = tracker.start_run("train")
    rows = [MetricRow("loss", 0.5, 1000, 1), MetricRow("rate", float("nan"), 1000, 1)]
    for _ in range(3):
        tracker.log_metric_rows(run_id, rows)
    tracker.log_metric_rows(run_id, [*rows, MetricRow("loss", 0.4, 1001, 2)])
    assert tracker.metric_history(run_id, "loss") == [(1, 0.5), (2, 0.4)]
    assert len(tracker.metric_history(run_id, "rate")) == 1
    assert tracker.logged_steps(run_id) == {"loss": {1, 2}, "rate": {1}}


def test_what_mlflow_missed_is_sent_by_the_next_attempt(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def attempt(tracking: TrackingConfig, first_step: int, end: int) -> None:
        request = TrainRequest(
            config=small_config({}), shards_uri="unused", output_uri=str(tmp_path), tracking=tracking, run_id=run_id
        )
        log = MetricsLog(request, first_step=first_step)
        for step in range(first_step, end):
            log.add(step, {"loss": 1 / (step + 1)})
        log.close()

    run_id = tracker.start_run("train")
    monkeypatch.setattr("training.metrics_log.FLUSH_TIMEOUT_S", 0.5)
    with caplog.at_level(logging.WARNING):
        attempt(TrackingConfig(uri="http://127.0.0.1:9"), 0, 5)  # nobody listens on the discard port
    assert "MLflow has not got 5 lines of metrics" in caplog.text and "Run the same command again" in caplog.text
    assert not rows_in_mlflow(tracker, run_id)
    monkeypatch.setattr("training.metrics_log.FLUSH_TIMEOUT_S", 60.0)
    attempt(tracker.config, 3, 6)
    assert rows_in_mlflow(tracker, run_id) == rows_on_disk(tmp_path)
    assert len(read_metrics(str(tmp_path))) == 6
