"""A step that is not finite stops all ranks at the same check, with the step, the values and the samples."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from infra.errors import HyperClipError
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


def _worker(rank: int, folder: str, case: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    Path(f"{folder}/{rank}.txt").write_text(checked(rank, f"{folder}/shards", case))
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.parametrize("case", ["good", "loss", "gradient", "problem"])
def test_all_ranks_hear_the_same(case: str, tmp_path: Path) -> None:
    shards = write_shard(tmp_path / "shards", num_samples=36)
    mp.spawn(_worker, args=(str(tmp_path), case), nprocs=2)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    uids = [ShardReader.open(str(shards))[index][1].uid for index in range(36)]
    match case:
        case "good":
            assert first == second == "loss 4.5, then nan"
        case "loss":
            assert first == second
            assert "the loss of step 11 is not finite" in first
            assert "rank 0 loss 3 gradient norm 0.5, rank 1 loss nan" in first
            assert f"the first 5 of 6 of rank 1: {', '.join(uids[18:23])}. " in first
        case "gradient":
            assert first == second
            assert "the gradient of step 11 is not finite" in first
            assert f"rank 0: {', '.join(uids[12:17])}; rank 1: {', '.join(uids[18:23])}. " in first
        case "problem":
            assert first == "the disk is full"
            assert second == "rank 0 had to stop; its log says why"
