"""Small real training runs: shards of bundled pictures, and workers as processes of their own."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch

from data_prep.manifest import SampleRecord, ShardEntry, ShardManifest, write_manifest
from data_prep.sample.pictures import read_sample
from infra.tracking import TrackingConfig
from tests.forked import FORKED
from training.config import TrainConfig, TrainRequest
from training.launch import main

NUM_SAMPLES, NUM_STEPS = 96, 10


def write_shard(folder: Path, *, split: Literal["train", "evaluation"] = "train", num_samples: int = NUM_SAMPLES) -> Path:
    """One shard of bundled pictures with its manifest; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = []
    with tarfile.open(folder / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, row in enumerate(read_sample(split).to_pylist()[:num_samples]):
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
    entry = ShardEntry(path="0.tar", samples=len(offsets), bytes=len(data), sha256=sha256(data).hexdigest(), offsets=offsets)
    write_manifest(ShardManifest(shards=[entry], num_samples=len(offsets)), str(folder))
    return folder


def small_config(changes: Mapping[str, Any]) -> TrainConfig:
    """A run of seconds that uses every part of training."""
    return TrainConfig.model_validate(
        {
            "model": "hyperclip_test",
            "num_steps": NUM_STEPS,
            "contrastive_batch_size": 24,
            "loader_workers": 0,
            "log_every_steps": 1,
            "optimizer": {"warmup_steps": 2},
            "conditioning": {"groups": [1, 4], "drop_share": 0.2, "distractor_share": 0.3},
            "checkpoint": {"every_steps": 5},
            **changes,
        }
    )


def request_of(
    config: TrainConfig, shards: Path, output: Path, *, tracking: TrackingConfig | None = None, run_id: str | None = None
) -> TrainRequest:
    return TrainRequest(config=config, shards_uri=str(shards), output_uri=str(output), tracking=tracking, run_id=run_id)


def write_request(request: TrainRequest) -> str:
    file = Path(request.output_uri) / "request.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(request.model_dump_json())
    return str(file)


def start_worker(request: TrainRequest, log: Path) -> subprocess.Popen[bytes]:
    """One worker, as torchrun would start it; what it says goes to `log`."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "training.launch", write_request(request)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def run_worker(request: TrainRequest) -> tuple[int, str]:
    """Exit status of a worker, a process that has imported what it needs already, and what it said."""
    log = Path(request.output_uri).with_suffix(".log")
    process = FORKED.Process(target=_work, args=(write_request(request), log))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, log.read_text(errors="replace")


def _work(request_file: str, log: Path) -> None:
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(main([request_file]))


def losses(output: Path) -> list[float]:
    """By step, from metrics.jsonl."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
