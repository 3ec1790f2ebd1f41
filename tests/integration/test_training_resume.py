"""Training through the real worker: the loss trace, resuming bit by bit, and shards that cannot be used."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.make import LOSS_TRACE_PATH
from tests.training_runs import NUM_STEPS, losses, request_of, run_worker, small_config, write_shard
from tests.unit.model_helpers import make_bundle
from training.bundle import load_bundle
from training.checkpoint import PARTS, load_checkpoint
from training.model.registry import hyperclip_test, siglip_twin


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards"))


def two_stages(folder: Path) -> dict[str, Any]:
    """The hypernetwork on a frozen twin, then everything: resumed in the first stage, two steps before the second.  All under
    a teacher."""
    make_bundle(folder / "twin", siglip_twin(hyperclip_test()))
    return {
        "generation": {"generates": ["norm", "convolution", "pointwise", "projection"], "zero_mean": True},
        "conditioning": {"groups": [1, 4], "drop_share": 0.2, "delta_penalty": 0.001},
        "optimizer": {"warmup_steps": 2, "hypernetwork_lr_scale": 3.0},
        "init_from": str(folder / "twin"),
        "distillation": {"teacher": str(folder / "twin")},
        "freeze": ["image_trunk", "projection", "text_encoder", "logit"],
        "freeze_steps": 7,
        "delta_share": 0.5,
    }


@pytest.mark.integration
@pytest.mark.parametrize(("zero_stage", "stages"), [(0, 1), (0, 2), (1, 2), (3, 2)])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(shards: Path, tmp_path: Path, zero_stage: int, stages: int) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    config = small_config({"zero_stage": zero_stage, **(two_stages(tmp_path) if stages == 2 else {})})
    status, said = run_worker(request_of(config, shards, whole))
    assert status == 0, said
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "bundle")
    shutil.rmtree(resumed / "checkpoint-manifests")  # as if killed right after the marker of a checkpoint
    shutil.rmtree(resumed / "checkpoints" / f"step-{NUM_STEPS:08d}")  # as if killed after step 5's checkpoint
    status, said = run_worker(request_of(config, shards, resumed))
    assert status == 0, said
    assert "resuming at step 5" in said
    assert losses(resumed) == losses(whole)
    assert {path.name for path in (resumed / "checkpoint-manifests").iterdir()} == {"step-00000005.json", "step-00000010.json"}
    left, right = (load_checkpoint(str(run / "checkpoints" / f"step-{NUM_STEPS:08d}"))[1] for run in (whole, resumed))
    for part in PARTS:
        for name, value in getattr(left, part).items():
            assert torch.equal(value, getattr(right, part)[name]), f"{part} {name}"
    trained = left.parameters["hypernetwork.output.weight"]
    kept = load_bundle(whole / "bundle").model.hypernetwork
    assert kept is not None and trained.any()
    assert torch.equal(kept.output.weight, trained * config.delta_share)
    if stages == 1:
        # other processors round differently; a changed loss, order or augmentation differs by far more
        assert losses(whole) == pytest.approx(json.loads(LOSS_TRACE_PATH.read_text()), rel=0.02)


@pytest.mark.integration
def test_a_truncated_shard_is_named_and_nothing_is_trained(shards: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(shards, damaged)
    data = (damaged / "0.tar").read_bytes()
    (damaged / "0.tar").write_bytes(data[: len(data) // 2])
    status, said = run_worker(request_of(small_config({}), damaged, tmp_path / "out"))
    assert status == 1
    assert "0.tar" in said and "Traceback" not in said
    assert not (tmp_path / "out" / "checkpoints").exists()
