"""Real torchrun: the bundle of two ranks, resuming after a kill of the whole tree, and requests that cannot be used."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from tests.training_runs import request_of, run_worker, small_config, write_shard
from training.bundle import load_bundle
from training.config import TrainRequest

pytestmark = pytest.mark.distributed
NUM_STEPS = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def one_rank(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainRequest:
    """The same run in one process."""
    request = make_request(shards, tmp_path_factory.mktemp("alone") / "out")
    status, said = run_worker(request)
    assert status == 0, said
    return request


def make_request(shards: Path, output: Path) -> TrainRequest:
    settings = {
        "num_steps": NUM_STEPS,
        "zero_stage": 2,
        # an eps far above the noise of fp32 sums: Adam would turn noise around a zero gradient into whole steps
        "optimizer": {"warmup_steps": 2, "eps": 1e-3},
        "checkpoint": {"every_steps": 4},
    }
    return request_of(small_config(settings), shards, output)


def torchrun(request_file: Path) -> subprocess.Popen[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training.launch", str(request_file)]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_request(request: TrainRequest) -> Path:
    output = Path(request.output_uri)
    output.mkdir(parents=True)
    file = output / "request.json"
    file.write_text(request.model_dump_json())
    return file


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL to torchrun and its workers, the launcher first so that it cannot clean up."""
    tree = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_two_ranks_train_and_resume_like_one(shards: Path, one_rank: TrainRequest, tmp_path: Path) -> None:
    request = make_request(shards, tmp_path / "out")
    file = write_request(request)
    first = torchrun(file)
    assert first.stdout is not None
    for line in first.stdout:  # progress, as it comes
        if line.startswith("step 6 of 12"):
            kill_tree(first)
            break
    else:
        raise AssertionError(f"the run ended by itself: {first.communicate()[1]}")
    assert not (tmp_path / "out" / "bundle").exists()

    second = torchrun(file)
    said, errors = second.communicate()
    assert second.returncode == 0, errors
    assert "resuming at step 4" in errors
    assert "step 5 of 12  loss " in said and "step 12 of 12  loss " in said
    expected, found = (load_bundle(Path(run.output_uri) / "bundle").model.state_dict() for run in (one_rank, request))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # fp32 sums in another order, through 12 steps of normalizations by batch statistics
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * max(1.0, value.abs().max().item()), msg=name)


def test_a_wrong_request_fails_with_its_reason(shards: Path, tmp_path: Path) -> None:
    file = write_request(make_request(shards, tmp_path / "out"))
    content = json.loads(file.read_text())
    content["config"]["num_stepz"] = 3
    file.write_text(json.dumps(content))
    run = torchrun(file)
    _, errors = run.communicate()
    assert run.returncode == 1  # torchrun's own; the worker's status is in its report
    assert "has 1 problem(s)" in errors and "config.num_stepz" in errors
    assert "exitcode  : 2" in errors
