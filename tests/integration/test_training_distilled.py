"""A small student learns from the shipped model through the real worker."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training_runs import losses, request_of, run_worker, small_config, write_shard
from training.shipped import shipped_model_folder

NUM_STEPS = 80


def run_student(shards: Path, output: Path, **changes: Any) -> list[float]:
    """`distillation_loss` by step."""
    settings = {
        "model": "siglip_nano",
        "conditioning": {"groups": [1]},
        "num_steps": NUM_STEPS,
        "optimizer": {"warmup_steps": 2, "learning_rate": 3e-3},
        "checkpoint": {"every_steps": NUM_STEPS},
    }
    status, said = run_worker(request_of(small_config({**settings, **changes}), shards, output))
    assert status == 0, said
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["distillation_loss"] for line in lines if "loss" in line]


@pytest.mark.integration
def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    shards = write_shard(tmp_path / "shards")
    plain = run_student(shards, tmp_path / "plain", num_steps=2, checkpoint={"every_steps": 2})
    taught = run_student(shards, tmp_path / "taught", distillation={"teacher": str(shipped_model_folder()), "weight": 3})
    assert not any(plain) and len(taught) == NUM_STEPS
    assert sum(taught[-20:]) < 0.95 * sum(taught[:20])
    first_plain, first_taught = losses(tmp_path / "plain")[0], losses(tmp_path / "taught")[0]
    assert first_taught == pytest.approx(first_plain + 3 * taught[0], rel=1e-5)  # the same batch and the same student
    card = (tmp_path / "taught" / "bundle" / "README.md").read_text()
    assert "a teacher's bundle, weight 3.0" in card
