"""The GPU benchmark says so where there is no GPU, and every side of it runs: here on the CPU, at the smallest size."""

import importlib.util
import json

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks._gpu_sides import Sizes


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: `make bench` measures it")
def test_without_a_gpu_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == gpu.NO_GPU_STATUS
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1])
    assert result["ok"] is False and "no CUDA device" in result["reason"] and "no CUDA device" in said.err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is the peer")
def test_every_side_runs(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = Sizes("test", batch=8, steps=1, rounds=1, num_pictures=16, loader_workers=0, precision="fp32", compile_peer=False)
    with gpu.process_group("gloo"):
        status = gpu.run(sizes, torch.device("cpu"))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == (0 if result["ok"] else 1)
    assert result["device"] == "cpu"
    rates = {name: one["value"] for name, one in result["measures"].items() if name.endswith("per_second")}
    assert len(rates) == 6 and min(rates.values()) > 0
