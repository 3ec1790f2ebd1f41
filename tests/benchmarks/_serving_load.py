"""Tasks, pictures and a closed loop of callers for benchmarks of the image encoder, which they call through Serve's handles.

Both sides of a comparison get the same calls in the same order from the same callers, with no proxy or ingress before them.
"""

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.handle import DeploymentHandle

from data_prep.sample.pictures import read_sample
from infra.cluster import ClusterConfig, connected
from serving.config import ServingConfig
from serving.deployments.handles import SERIALIZATION
from serving.deployments.image_encoder import ImageEncoder
from serving.launch import LOGGING
from serving.model_source import resolve
from serving.task_record import make_record
from serving.task_store import TaskStore
from training.bundle import Bundle
from training.specialize import specialize

TENANT = "benchmark"
NUM_NAMES = 10
TOP_K = 5


class StoredTask(NamedTuple):
    """A task whose encoder is in the store."""

    task_id: str
    specialization_id: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One picture under one task, by number."""

    task: int
    picture: int


@dataclass(frozen=True)
class Load:
    """What a round of calls gave."""

    requests_per_s: float
    latencies_s: np.ndarray
    answers: list[Any]
    """In the order of the calls."""

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent))


def pictures() -> list[bytes]:
    """Those of the bundled sample."""
    found: list[bytes] = read_sample()["image"].to_pylist()
    return found


def store_tasks(bundle: Bundle, store: TaskStore, *, count: int, seed: int = 0) -> list[StoredTask]:
    """Tasks of ten names of the bundled sample each, all different."""
    names = sorted(set(read_sample()["concept"].to_pylist()))
    rng = random.Random(seed)
    return [store_task(bundle, store, rng.sample(names, NUM_NAMES)) for _ in range(count)]


def store_task(bundle: Bundle, store: TaskStore, labels: Sequence[str]) -> StoredTask:
    record = make_record(tenant=TENANT, labels=labels, templates=("{}",), pinned_version=None)
    encoder = specialize(bundle, record.labels, record.templates)
    return StoredTask(record.task_id, store.put_encoder(record.task_id, encoder, bundle), record.labels)


def draw_calls(count: int, *, num_tasks: int, num_pictures: int, seed: int) -> list[Call]:
    rng = random.Random(seed)
    return [Call(rng.randrange(num_tasks), rng.randrange(num_pictures)) for _ in range(count)]


async def drive(call: Callable[[Call], Awaitable[Any]], calls: Sequence[Call], *, concurrency: int) -> Load:
    """Make the calls with so many callers, each of whom makes the next when the last is answered."""
    latencies, answers = np.zeros(len(calls)), [None] * len(calls)
    numbers = iter(range(len(calls)))

    async def caller() -> None:
        for number in numbers:
            started = time.perf_counter()
            answers[number] = await call(calls[number])
            latencies[number] = time.perf_counter() - started

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return Load(len(calls) / (time.perf_counter() - started), latencies, answers)


class MeasuredImageEncoder(ImageEncoder):
    """The deployment, which also tells what its process holds."""

    async def resources(self) -> dict[str, int]:
        text = Path("/proc/self/status").read_text()
        resident = self._shared.resident
        memory = 1024 * int(text.partition("VmRSS:")[2].split()[0])
        return {"memory": memory, "tasks": len(resident), "resident_bytes": resident.bytes_used}


class ImageEncoderClient:
    """Calls the deployment as the ingress does."""

    def __init__(self, handle: DeploymentHandle, digest: str) -> None:
        self._handle = handle.options(method_name="classify", **SERIALIZATION)
        self._digest = digest

    def classify(self, task: StoredTask, image: bytes, *, top_k: int = TOP_K, tenant: str = TENANT) -> Any:
        return self._handle.remote(
            [image],
            task_id=task.task_id,
            specialization_id=task.specialization_id,
            digest=self._digest,
            parameters="specialized",
            top_k=top_k,
            tenant=tenant,
        )


def image_encoder(
    config: ServingConfig, *, max_ongoing: int, deployment: type[ImageEncoder] = MeasuredImageEncoder
) -> serve.Application:
    """The application of ours: one replica of the deployment, without ingress."""
    options: dict[str, Any] = {"max_ongoing_requests": max_ongoing, "ray_actor_options": {"num_cpus": 0.1}}
    return serve.deployment(deployment, **options).bind(config, resolve(config))


@asynccontextmanager
async def serving(applications: dict[str, serve.Application]) -> AsyncIterator[dict[str, DeploymentHandle]]:
    """Run applications beside each other, without a proxy; gives their handles."""
    with connected(ClusterConfig(num_cpus=2)):
        try:
            serve.start(proxy_location=ProxyLocation.Disabled, logging_config=LOGGING)
            handles = {
                name: serve.run(application, name=name, route_prefix=None, logging_config=LOGGING)
                for name, application in applications.items()
            }
            gc.collect()
            gc.freeze()  # full collections of the callers' own objects would be counted as latency, on either side
            yield handles
        finally:
            await serve.shutdown_async()
