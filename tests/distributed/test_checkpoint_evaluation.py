"""The process that evaluates a checkpoint beside training ends with the training process, even if that is killed."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.training_runs import request_of, small_config
from training.checkpoint import MARKER

pytestmark = pytest.mark.distributed

STARTS_ONE = """
import sys
from training.config import TrainRequest
from training.evaluation.during_training import CheckpointEvaluator

evaluator = CheckpointEvaluator(TrainRequest.model_validate_json(open(sys.argv[1]).read()))
evaluator.start(5, sys.argv[2])
print(evaluator._running.process.pid, flush=True)
evaluator.finish()
"""


@pytest.mark.timeout(120)
def test_an_evaluation_ends_when_its_training_is_killed(tmp_path: Path) -> None:
    endless = tmp_path / "step-00000005"
    endless.mkdir()
    os.mkfifo(endless / MARKER)  # whoever reads it waits for ever
    request = request_of(small_config({}), tmp_path / "shards", tmp_path / "out")
    (tmp_path / "request.json").write_text(request.model_dump_json())
    command = [sys.executable, "-c", STARTS_ONE, str(tmp_path / "request.json"), str(endless)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        evaluation = psutil.Process(int(training.stdout.readline()))
        training.kill()
    try:
        evaluation.wait(timeout=60)
    finally:
        if evaluation.is_running():
            evaluation.kill()
