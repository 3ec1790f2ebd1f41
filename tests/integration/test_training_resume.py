"""Training through the real worker: the loss trace, resuming bit by bit, and shards that cannot be used."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from data_prep.manifest import SampleRecord, ShardEntry, ShardManifest, write_manifest
from data_prep.sample.pictures import read_sample
from training.checkpoint import PARTS, load_checkpoint
from training.config import TrainConfig, TrainRequest

TRACE = Path(__file__).parents[1] / "golden" / "loss_trace.json"
NUM_SAMPLES, NUM_STEPS = 96, 10


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of bundled pictures."""
    folder = tmp_path_factory.mktemp("shards")
    offsets = []
    with tarfile.open(folder / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, row in enumerate(read_sample("train").to_pylist()[:NUM_SAMPLES]):
            offsets.append(tar.offset)
            record = SampleRecord(
                uid=row["uid"],
                captions=[row["caption"]],
                concept=row["concept"],
                group=row["group"],
                sha256=sha256(row["image"]).hexdigest(),
                width=64,
                height=64,
            )
            for suffix, data in (("webp", row["image"]), ("json", record.model_dump_json().encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    data = (folder / "0.tar").read_bytes()
    entry = ShardEntry(path="0.tar", samples=NUM_SAMPLES, bytes=len(data), sha256=sha256(data).hexdigest(), offsets=offsets)
    write_manifest(ShardManifest(shards=[entry], num_samples=NUM_SAMPLES), str(folder))
    return folder


def run_worker(shards: Path, output: Path, *, zero_stage: int) -> subprocess.CompletedProcess[str]:
    config = TrainConfig.model_validate(
        {
            "model": "hyperclip_test",
            "num_steps": NUM_STEPS,
            "contrastive_batch_size": 24,
            "zero_stage": zero_stage,
            "loader_workers": 0,
            "log_every_steps": 1,
            "optimizer": {"warmup_steps": 2},
            "conditioning": {"groups": [1, 4], "drop_share": 0.2, "distractor_share": 0.3},
            "checkpoint": {"every_steps": 5},
        }
    )
    output.mkdir(exist_ok=True)
    request = output / "request.json"
    request.write_text(TrainRequest(config=config, shards_uri=str(shards), output_uri=str(output)).model_dump_json())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "training.launch", str(request)], env=environment, capture_output=True, text=True, check=False
    )


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.integration
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(shards: Path, tmp_path: Path, zero_stage: int) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    first = run_worker(shards, whole, zero_stage=zero_stage)
    assert first.returncode == 0, first.stderr
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "bundle")
    shutil.rmtree(resumed / "checkpoints" / f"step-{NUM_STEPS:08d}")  # as if killed after step 5's checkpoint
    second = run_worker(shards, resumed, zero_stage=zero_stage)
    assert second.returncode == 0, second.stderr
    assert "resuming at step 5" in second.stderr
    assert losses(resumed) == losses(whole)
    left, right = (load_checkpoint(str(run / "checkpoints" / f"step-{NUM_STEPS:08d}"))[1] for run in (whole, resumed))
    for part in PARTS:
        for name, value in getattr(left, part).items():
            assert torch.equal(value, getattr(right, part)[name]), f"{part} {name}"
    # other processors round differently; a changed loss, order or augmentation differs by far more
    assert losses(whole) == pytest.approx(json.loads(TRACE.read_text()), rel=0.02)


@pytest.mark.integration
def test_a_truncated_shard_is_named_and_nothing_is_trained(shards: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(shards, damaged)
    data = (damaged / "0.tar").read_bytes()
    (damaged / "0.tar").write_bytes(data[: len(data) // 2])
    result = run_worker(damaged, tmp_path / "out", zero_stage=1)
    assert result.returncode == 1
    assert "0.tar" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "checkpoints").exists()
