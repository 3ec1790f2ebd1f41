"""A step that is not finite stops all ranks at the same check, with the step, the values and the samples."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from infra.errors import HyperClipError
from tests.forked import run_ranks
from tests.training_runs import write_shard
from training.data import ShardReader
from training.health import HealthWindow

NAN, INF = float("nan"), float("inf")


def checked(rank: int, shards: str, case: str) -> str:
    """What a rank is told after three steps, of which the second is bad in the way of the case."""
    window = HealthWindow(ShardReader.open(shards), first_step=10, device=torch.device("cpu"))
    for step in range(3):
        bad = step == 1
        loss = NAN if bad and case == "loss" and rank == 1 else 2.0 + rank + step
        grad_norm = INF if bad and case == "gradient" else 0.5
        samples = torch.arange(6) + 6 * (2 * step + rank)
        window.add(loss=torch.tensor(loss), grad_norm=torch.tensor(grad_norm), samples=samples)
    problem = "the disk is full" if case == "problem" and rank == 0 else None
    try:
        return f"loss {window.check(problem=problem)}, then {window.check()}"
    except HyperClipError as error:
        return str(error)


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    told = {case: checked(rank, f"{folder}/shards", case) for case in ("good", "loss", "gradient", "problem")}
    Path(f"{folder}/{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.mark.distributed
def test_all_ranks_hear_the_same(tmp_path: Path) -> None:
    shards = write_shard(tmp_path / "shards", num_samples=36)
    run_ranks(_worker, str(tmp_path), world_size=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    uids = [ShardReader.open(str(shards))[index][1].uid for index in range(36)]
    for case in ("good", "loss", "gradient"):
        assert first[case] == second[case]
    assert first["good"] == "loss 4.5, then nan"
    assert "the loss of step 11 is not finite" in first["loss"]
    assert "rank 0 loss 3 gradient norm 0.5, rank 1 loss nan" in first["loss"]
    assert f"the first 5 of 6 of rank 1: {', '.join(uids[18:23])}. " in first["loss"]
    assert "the gradient of step 11 is not finite" in first["gradient"]
    assert f"rank 0: {', '.join(uids[12:17])}; rank 1: {', '.join(uids[18:23])}. " in first["gradient"]
    assert first["problem"] == "the disk is full"
    assert second["problem"] == "rank 0 had to stop; its log says why"
