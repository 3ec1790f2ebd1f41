"""What `serve_across_tasks` runs, once the switches are set: both sides in one Serve."""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.config import BatchingConfig, ServingConfig
from serving.deployments.handles import SERIALIZATION
from serving.task_store import TaskStore
from tests.benchmarks._multiplexed import PeerSettings, multiplexed
from tests.benchmarks._serving_load import (
    TOP_K,
    Call,
    ImageEncoderClient,
    Load,
    StoredTask,
    draw_calls,
    drive,
    image_encoder,
    pictures,
    serving,
    store_tasks,
)
from tests.result import benchmark_result, environment, measure, spread
from training.bundle import load_bundle
from training.shipped import shipped_model_folder

NAME = "serve_across_tasks"
NUM_TASKS, FEW_RESIDENT = 32, 8
CONCURRENCY = 64
GOALS = {NUM_TASKS: (1.5, 0.7), FEW_RESIDENT: (3.0, 0.5)}
"""Models resident at the peer -> throughput at least, p99 at most."""
BATCHING = BatchingConfig(max_batch_size=32)
GRID = [
    PeerSettings(max_batch_size=size, batch_wait_timeout_s=wait, in_thread=in_thread, max_concurrent_batches=concurrent)
    for size, wait in ((16, 0.002), (64, 0.0), (64, 0.005))
    for in_thread, concurrent in ((True, 1), (True, 4), (False, 1))
]
SAME = 1e-4
"""Scores of the two sides may differ by this: folding rounds each weight once more."""


class Sides:
    """How each side is called."""

    def __init__(self, handles: dict[str, DeploymentHandle], tasks: Sequence[StoredTask], digest: str) -> None:
        self._tasks = tasks
        if "ours" in handles:
            self._ours = ImageEncoderClient(handles["ours"], digest)
        self._pictures = pictures()
        self._by_task = {
            (side, number): handle.options(
                method_name="classify", multiplexed_model_id=f"{task.task_id}:{task.specialization_id}", **SERIALIZATION
            )
            for side, handle in handles.items()
            if side != "ours"
            for number, task in enumerate(tasks)
        }

    def call(self, side: str, call: Call) -> Any:
        image = [self._pictures[call.picture]]
        if side != "ours":
            return self._by_task[side, call.task].remote(image, TOP_K)
        return self._ours.classify(self._tasks[call.task], image[0])

    async def measure(self, side: str, count: int, *, seed: int) -> Load:
        calls = draw_calls(count, num_tasks=len(self._tasks), num_pictures=len(self._pictures), seed=seed)
        return await drive(lambda call: self.call(side, call), calls, concurrency=CONCURRENCY)


def predictions(answer: Any) -> dict[str, float]:
    found = answer[0]
    return {one.label: one.score for one in getattr(found, "predictions", found)}


def num_unlike(ours: Load, theirs: Load) -> int:
    """Answers of the same calls that are not the same."""
    unlike = 0
    for one, other in zip(ours.answers, theirs.answers, strict=True):
        found, expected = predictions(one), predictions(other)
        unlike += any(abs(found.get(label, 0.0) - score) > SAME for label, score in expected.items())
    return unlike


async def run(*, quick: bool) -> int:
    folder = shipped_model_folder()
    count, rounds, few = (200, 1, 50) if quick else (2000, 5, 300)
    grid = GRID[:1] if quick else GRID
    with tempfile.TemporaryDirectory(prefix="hyperclip-across-") as store_uri:
        bundle = load_bundle(folder)
        tasks = store_tasks(bundle, TaskStore(store_uri), count=NUM_TASKS)
        config = ServingConfig(bundle_uri=str(folder), task_store_uri=store_uri, batching=BATCHING)

        def peer(max_models: int, settings: PeerSettings) -> serve.Application:
            return multiplexed(
                folder, store_uri, max_models=max_models, decode_threads=BATCHING.decode_threads, settings=settings
            )

        best, tried = await tune(peer, tasks, bundle.digest, grid, count=few)
        applications = {"ours": image_encoder(config, max_ongoing=CONCURRENCY)}
        applications |= {f"multiplexed_{resident}": peer(resident, best) for resident in GOALS}
        loads: dict[str, list[Load]] = {side: [] for side in applications}
        unlike = 0
        async with serving(applications) as handles:
            sides = Sides(handles, tasks, bundle.digest)
            for side in applications:
                await sides.measure(side, few, seed=0)
            for number in range(rounds):
                for side in list(applications) if number % 2 == 0 else list(reversed(applications)):
                    load = await sides.measure(side, count, seed=number + 1)
                    loads[side].append(load)
                    print(
                        f"  round {number + 1} of {rounds}: {side} {load.requests_per_s:.0f}/s, "
                        f"p50 {1000 * load.percentile(50):.1f} ms, p99 {1000 * load.percentile(99):.1f} ms",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
                unlike += num_unlike(loads["ours"][-1], loads[f"multiplexed_{NUM_TASKS}"][-1])
            batch_sizes = [answer[0].batch_size for load in loads["ours"] for answer in load.answers]
    return report(loads, unlike, quick=quick, peer=asdict(best), tried=tried, batch_size=statistics.mean(batch_sizes))


async def tune(
    peer: Any, tasks: Sequence[StoredTask], digest: str, grid: Sequence[PeerSettings], *, count: int
) -> tuple[PeerSettings, dict[str, float]]:
    """The settings with which the peer, all models resident, answers most calls a second."""
    if len(grid) == 1:
        return grid[0], {}
    applications = {f"peer_{number}": peer(len(tasks), settings) for number, settings in enumerate(grid)}
    found = dict.fromkeys(applications, 0.0)
    async with serving(applications) as handles:
        sides = Sides(handles, tasks, digest)
        for side in applications:
            await sides.measure(side, count, seed=0)
        for number in range(3):
            for side in applications:
                load = await sides.measure(side, count, seed=number + 1)
                found[side] = max(found[side], load.requests_per_s)
    ranked = sorted(zip(found.values(), range(len(grid)), strict=True), reverse=True)
    for rate, place in ranked:
        print(f"  peer at {rate:.0f}/s with {grid[place]}", file=sys.stderr, flush=True)
    return grid[ranked[0][1]], {str(asdict(grid[place])): round(rate, 1) for rate, place in ranked}


def report(loads: dict[str, list[Load]], unlike: int, *, quick: bool, **details: Any) -> int:
    measures = {"answers_unlike": measure(unlike, goal=("<=", 0))}
    ratios: dict[int, float] = {}
    for resident, (throughput, p99) in GOALS.items():
        pairs = list(zip(loads["ours"], loads[f"multiplexed_{resident}"], strict=True))
        ratios[resident] = statistics.median(ours.requests_per_s / theirs.requests_per_s for ours, theirs in pairs)
        tail = statistics.median(ours.percentile(99) / theirs.percentile(99) for ours, theirs in pairs)
        measures |= {
            f"throughput_over_{resident}_resident": measure(ratios[resident], goal=None if quick else (">=", throughput)),
            f"p99_over_{resident}_resident": measure(tail, goal=None if quick else ("<=", p99)),
        }
    for side, rounds in loads.items():
        measures |= {
            f"{side}_requests_per_s": measure(statistics.median(load.requests_per_s for load in rounds), unit="1/s"),
            f"{side}_p99": measure(statistics.median(1000 * load.percentile(99) for load in rounds), unit="ms"),
        }
    return benchmark_result(
        NAME,
        ratio=ratios[NUM_TASKS],
        goal=None if quick else (">=", GOALS[NUM_TASKS][0]),
        measures=measures,
        requests_per_s={side: spread([load.requests_per_s for load in rounds]) for side, rounds in loads.items()},
        p50_ms={side: spread([1000 * load.percentile(50) for load in rounds]) for side, rounds in loads.items()},
        **details,
        **environment("ray", "torch", "timm"),
    )
