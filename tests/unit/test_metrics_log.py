"""metrics.jsonl: what stays when a run is resumed, and what readers see."""

import json
from pathlib import Path

import pytest

from infra import storage
from tests.training_runs import small_config
from training.config import TrainRequest
from training.metrics_log import MetricsLog, metrics_uri, read_metrics


def request(output_uri: str) -> TrainRequest:
    return TrainRequest(config=small_config({}), shards_uri="unused", output_uri=output_uri)


@pytest.fixture(params=["folder", "object store"])
def output_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"


def steps(output_uri: str) -> list[float]:
    return [record["step"] for record in read_metrics(output_uri)]


def test_a_resumed_run_writes_the_lines_of_redone_steps_anew(output_uri: str) -> None:
    first = MetricsLog(request(output_uri), first_step=0)
    for step in range(6):
        first.add(step, {"loss": 1.0})
    first.close()
    second = MetricsLog(request(output_uri), first_step=4)
    for step in (4, 5, 6):
        second.add(step, {"loss": 2.0})
    second.close()
    assert [(record["step"], record["loss"]) for record in read_metrics(output_uri)] == [
        *((step, 1.0) for step in range(4)),
        *((step, 2.0) for step in range(4, 7)),
    ]


def test_evaluations_are_lines_of_their_own_and_stay_with_their_checkpoint(output_uri: str) -> None:
    log = MetricsLog(request(output_uri), first_step=0)
    for step in range(8):
        log.add(step, {"loss": 1.0})
        if step in (4, 7):
            log.add_evaluation(step - 1, {"accuracy": 0.5})
    log.close()
    assert steps(output_uri) == list(range(8))
    resumed = MetricsLog(request(output_uri), first_step=3)
    resumed.close()
    assert resumed.evaluated_steps == {3}
    assert steps(output_uri) == [0, 1, 2]


def test_half_a_line_is_no_line(tmp_path: Path) -> None:
    storage.write_atomic(metrics_uri(str(tmp_path)), json.dumps({"step": 0, "loss": 1.0}) + '\n{"step": 1, "lo')
    assert steps(str(tmp_path)) == [0]


def test_an_object_store_gets_the_lines_with_each_checkpoint(tmp_path: Path) -> None:
    uri = f"memory://{tmp_path.name}"
    log = MetricsLog(request(uri), first_step=0)
    log.add(0, {"loss": 1.0})
    log.persist()
    assert steps(uri) == [0]
    log.close()
