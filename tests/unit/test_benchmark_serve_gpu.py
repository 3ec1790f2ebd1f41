"""The GPU benchmark of serving says so where there is none, names replicas that are not on it, and runs: here on the CPU."""

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks import serve_gpu
from tests.benchmarks._serve_gpu_rates import Trunk
from tests.benchmarks._serve_gpu_service import ReplicaUse
from tests.unit.serving_helpers import make_bundle

ENCODER, HYPERNETWORK = "SERVE_REPLICA::hyperclip#ImageEncoder#a", "SERVE_REPLICA::hyperclip#Hypernetwork#b"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: `make bench` measures it")
def test_without_a_gpu_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["serve_gpu"])
    assert serve_gpu.main() == serve_gpu.NO_GPU_STATUS
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1])
    assert result["ok"] is False and "no CUDA device" in result["reason"] and "no CUDA device" in said.err


def test_a_replica_that_is_not_on_the_gpu_is_named() -> None:
    before = [ReplicaUse(ENCODER, 10, 5), ReplicaUse(HYPERNETWORK, 10, 5)]
    assert serve_gpu.idle(before, [ReplicaUse(ENCODER, 10, 6), ReplicaUse(HYPERNETWORK, 10, 5)]) == []
    assert serve_gpu.idle(before, before) == [f"{ENCODER} has computed nothing on the GPU"]
    assert serve_gpu.idle(before, [ReplicaUse(ENCODER, 0, 0)]) == [
        f"{ENCODER} holds nothing on the GPU",
        "no Hypernetwork runs",
    ]


def test_the_engine_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = serve_gpu.Sizes(
        num_tasks=2, num_pictures=2, batches=(1, 2), trunks=(Trunk("test_resnet", 32),), seconds=0.01, resident_tasks=1,
        load_s=1, rounds=1, judged=False,
    )  # fmt: skip
    bundles = {"shipped": make_bundle(tmp_path / "shipped"), "large": make_bundle(tmp_path / "large", seed=1)}
    assert serve_gpu.measure_engine(sizes, bundles, tmp_path, device="cpu") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["measures"]["shipped_score_difference_float32"]["value"] < serve_gpu.SAME
    assert len(result["refused"]) == 3 and result["measures"]["bad_models_served"]["value"] == 0
    assert set(result["forward_pictures_per_s"]["test_resnet_32_norm"]) == {
        "neutral",
        "one_task",
        "per_image",
        "per_image_last",
    }
