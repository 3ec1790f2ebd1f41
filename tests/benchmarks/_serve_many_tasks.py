"""What `serve_many_tasks` runs, once the switches are set."""

import statistics
import sys
import tempfile
from collections.abc import Sequence

from serving.config import BatchingConfig, ServingConfig
from serving.task_store import TaskStore
from tests.benchmarks._serving_load import (
    Call,
    ImageEncoderClient,
    Load,
    StoredTask,
    draw_calls,
    drive,
    image_encoder,
    pictures,
    serving,
    store_task,
    store_tasks,
)
from tests.result import benchmark_result, environment, measure, spread
from training.bundle import Bundle, load_bundle
from training.shipped import shipped_model_folder

NAME = "serve_many_tasks"
CONCURRENCY = 64
GOAL = 0.9
BATCHING = BatchingConfig(max_batch_size=32)
SIDES = ("one", "many")


class Caller:
    """Calls of one replica."""

    def __init__(self, client: ImageEncoderClient, tasks: Sequence[StoredTask]) -> None:
        self._client, self._tasks, self._pictures = client, tasks, pictures()

    async def drive(self, calls: Sequence[Call]) -> Load:
        def one(call: Call) -> object:
            return self._client.classify(self._tasks[call.task], self._pictures[call.picture])

        return await drive(one, calls, concurrency=CONCURRENCY)  # type: ignore[arg-type]

    async def meet_all(self) -> None:
        """Every task once."""
        await self.drive([Call(number, number % len(self._pictures)) for number in range(len(self._tasks))])

    async def measure(self, count: int, *, num_tasks: int, seed: int) -> Load:
        return await self.drive(draw_calls(count, num_tasks=num_tasks, num_pictures=len(self._pictures), seed=seed))


async def run(*, quick: bool) -> int:
    folder = shipped_model_folder()
    num_tasks, count, rounds = (100, 200, 1) if quick else (1000, 2000, 7)
    with tempfile.TemporaryDirectory(prefix="hyperclip-many-") as store_uri:
        bundle, store = load_bundle(folder), TaskStore(store_uri)
        tasks = store_tasks(bundle, store, count=num_tasks)
        large = store_task(bundle, store, [f"thing number {number}" for number in range(1000 if quick else 10_000)])
        config = ServingConfig(bundle_uri=str(folder), task_store_uri=store_uri, batching=BATCHING)
        bound = num_tasks // 10 * _bytes_of_ten_labels(bundle)
        bounded = config.rebuilt(batching=BATCHING.rebuilt(resident_bytes=bound))
        applications = {
            "roomy": image_encoder(config, max_ongoing=CONCURRENCY),
            "bounded": image_encoder(bounded, max_ongoing=CONCURRENCY),
        }
        loads: dict[str, list[Load]] = {side: [] for side in SIDES}
        async with serving(applications) as handles:
            clients = {name: ImageEncoderClient(handle, bundle.digest) for name, handle in handles.items()}
            caller = Caller(clients["roomy"], tasks)
            await caller.measure(count, num_tasks=1, seed=0)
            before = await handles["roomy"].resources.remote()
            await caller.meet_all()
            after = await handles["roomy"].resources.remote()
            for number in range(rounds):
                for side in SIDES if number % 2 == 0 else reversed(SIDES):
                    load = await caller.measure(count, num_tasks=1 if side == "one" else num_tasks, seed=number)
                    loads[side].append(load)
                    print(f"  round {number + 1} of {rounds}: {side} {load.requests_per_s:.0f}/s", file=sys.stderr, flush=True)
            await clients["roomy"].classify(large, pictures()[0])
            with_large = await handles["roomy"].resources.remote()
            await Caller(clients["bounded"], tasks).meet_all()
            held = await handles["bounded"].resources.remote()
    ratios = [many.requests_per_s / one.requests_per_s for one, many in zip(loads["one"], loads["many"], strict=True)]
    met = after["tasks"] - before["tasks"]
    return benchmark_result(
        NAME,
        ratio=statistics.median(ratios),
        goal=None if quick else (">=", GOAL),
        measures={
            "task_bytes": measure((after["resident_bytes"] - before["resident_bytes"]) / met, unit="bytes"),
            "process_growth_a_task": measure((after["memory"] - before["memory"]) / met, unit="bytes"),
            f"task_bytes_{len(large.labels)}_labels": measure(
                with_large["resident_bytes"] - after["resident_bytes"], unit="bytes"
            ),
            "bounded_tasks_kept": measure(held["tasks"], goal=(">=", 1)),
            "bounded_bytes_over_bound": measure(held["resident_bytes"] / bound, goal=("<=", 1.0)),
            **{
                f"{side}_p99": measure(statistics.median(1000 * load.percentile(99) for load in loads[side]), unit="ms")
                for side in SIDES
            },
        },
        tasks=num_tasks,
        ratios=spread(ratios),
        requests_per_s={side: spread([load.requests_per_s for load in loads[side]]) for side in SIDES},
        **environment("ray", "torch", "timm"),
    )


def _bytes_of_ten_labels(bundle: Bundle) -> int:
    """About."""
    values = bundle.model.image_encoder.layout.num_values + 10 * bundle.model.config.image.embed_dim
    return 4 * values + 10 * 80
