"""Training under a real Ray: a killed worker, a lost node, an error that would repeat itself, a cluster that is too small."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from infra.cluster import ClusterConfig, connected
from infra.errors import CorruptArtefactError, HyperClipError
from tests.training_runs import request_of, small_config, write_shard
from training.checkpoint import load_newest
from training.config import TrainRequest, WorkersConfig
from training.engine import FullState
from training.loop import training_hash
from training.on_ray import choose_num_workers, train_on_ray
from training.shard_reader import open_shards

pytestmark = pytest.mark.integration
NUM_STEPS, KILL_AT = 40, 7
"""Many steps: the driver hears of a step half a second later, and there must be some left to kill the worker in."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    with connected(ClusterConfig(num_cpus=2)):
        yield


def make_request(shards: Path, output: Path, **workers: object) -> TrainRequest:
    settings = {"num_steps": NUM_STEPS, "zero_stage": 1, "workers": {"num_workers": 2, "max_failures": 1, **workers}}
    return request_of(small_config(settings), shards, output)


def final_state(request: TrainRequest) -> FullState:
    found = load_newest(
        f"{request.output_uri}/checkpoints",
        config_hash=training_hash(request.config, open_shards(request.shards_uri).manifest, init_digest=None),
    )
    assert found is not None and found[0].step == NUM_STEPS
    return found[1]


def once_at(step: int, act: Callable[[], None]) -> tuple[Callable[[int, dict[str, float]], None], list[int]]:
    """A progress callback that acts once when the step is reached, and the steps it has seen."""
    seen: list[int] = []

    def progress(found: int, metrics: dict[str, float]) -> None:
        if found >= step and not any(earlier >= step for earlier in seen):
            act()
        seen.append(found)

    return progress, seen


def ignore(step: int, metrics: dict[str, float]) -> None:
    pass


def kill_a_worker() -> None:
    """The youngest: those of an earlier run may still be on their way out."""
    workers = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # Ray's processes come and go
            if any("RayTrainWorker" in part for part in child.cmdline()):
                workers.append(child)
    max(workers, key=psutil.Process.create_time).kill()


@pytest.mark.slow
def test_a_killed_worker_costs_no_bit(shards: Path, tmp_path: Path, two_cpus: None, caplog: pytest.LogCaptureFixture) -> None:
    undisturbed, killed = make_request(shards, tmp_path / "undisturbed"), make_request(shards, tmp_path / "killed")
    train_on_ray(undisturbed, progress=ignore)
    progress, steps = once_at(KILL_AT, kill_a_worker)
    train_on_ray(killed, progress=progress)
    assert "starts again (1 of 1)" in caplog.text
    assert set(steps) == set(range(NUM_STEPS))
    left, right = final_state(undisturbed), final_state(killed)
    for part in ("parameters", "moments", "buffers"):
        for name, value in getattr(left, part).items():
            assert torch.equal(value, getattr(right, part)[name]), f"{part} {name}"
    assert (tmp_path / "killed" / "bundle" / "bundle.json").exists()
    assert not (tmp_path / "killed" / "ray").exists()  # Ray Train's own records


def test_damaged_data_ends_the_run_at_once(
    shards: Path, tmp_path: Path, two_cpus: None, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "shards"
    shutil.copytree(shards, damaged)
    data = (damaged / "0.tar").read_bytes()
    (damaged / "0.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptArtefactError, match=r"0\.tar"):
        train_on_ray(make_request(damaged, tmp_path / "out", max_failures=5), progress=ignore)
    assert "starts again" not in caplog.text


def test_a_run_takes_the_largest_divisor_of_its_batch_that_fits(two_cpus: None) -> None:
    def choose(batch: int, **settings: object) -> int:
        workers = WorkersConfig.model_validate({"wait_for_workers_s": 1, **settings})
        return choose_num_workers(workers, contrastive_batch_size=batch)

    assert choose(12, num_workers=2) == 2
    assert choose(12, num_workers=4) == 2
    assert choose(9, num_workers=9) == 1  # 3 do not fit and 2 do not divide
    with pytest.raises(HyperClipError, match=r"no room for 3 worker\(s\).*min_workers=3"):
        choose(12, num_workers=4, min_workers=3)


@pytest.mark.slow
def test_a_run_that_loses_a_node_goes_on_with_the_workers_that_are_left(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Slow: Ray notices a dead node after some 15 s."""
    assert not ray.is_initialized(), "give this test a process of its own"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    try:
        with connected(ClusterConfig(address=cluster.address)):
            cluster.wait_for_nodes()
            request = make_request(shards, tmp_path / "lost", wait_for_workers_s=30)
            progress, steps = once_at(KILL_AT, lambda: cluster.remove_node(second, allow_graceful=False))
            train_on_ray(request, progress=progress)
    finally:
        cluster.shutdown()
    assert "training with 1 of 2 workers" in caplog.text
    assert NUM_STEPS - 1 in steps
    final_state(request)
