"""The whole service on loopback, its replicas on one GPU or on the CPU: where they compute, what they answer, how fast.

Ray Serve reads its switches when it is imported: import this module after `serving.switches.switch_on`.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import ray

from serving.client import ServingClient
from serving.config import BatchingConfig, DeploymentScale, ServingConfig
from serving.launch import running
from tests.http_load import Load, request_bytes, run_mixed_load

NUM_ENCODERS = 2
SMALL = 0.1
"""CPUs that a replica asks for: where they all fit, the machine's own scheduler does the rest."""
ENCODER_GPUS, HYPERNETWORK_GPUS = 0.4, 0.2
BATCHING = BatchingConfig(max_batch_size=64, max_waiting_images=4096, decode_threads=4)


@dataclass(frozen=True)
class ReplicaUse:
    """What the process of a replica has done with a GPU."""

    name: str
    allocated: int
    """Bytes on it now."""
    allocations: int
    """Made since the process began; every computation makes some."""

    @property
    def deployment(self) -> str:
        return self.name.split("#")[1]


def service_config(bundle: Path, store: Path, *, on_gpu: bool, num_encoders: int) -> ServingConfig:
    def scale(replicas: int, gpus: float = 0, **more: Any) -> DeploymentScale:
        return DeploymentScale(
            min_replicas=replicas, max_replicas=replicas, num_cpus=SMALL, num_gpus=gpus if on_gpu else 0, **more
        )

    return ServingConfig(
        bundle_uri=str(bundle),
        task_store_uri=str(store),
        port=0,
        batching=BATCHING,
        ingress=scale(2, max_ongoing_requests=256),
        hypernetwork=scale(1, HYPERNETWORK_GPUS),
        image_encoder=scale(num_encoders, ENCODER_GPUS),
    )


class RunningService:
    """One service under measurement."""

    def __init__(self, url: str, labels: Sequence[list[str]]) -> None:
        self._url, self._labels = url, labels
        self._client = ServingClient(url, timeout_s=120)
        self._tasks = [self._client.create_task(names).task_id for names in labels]

    def scores(self, images: Sequence[bytes]) -> list[dict[str, float]]:
        """Of every picture under every task, picture by picture, task by task."""
        by_task = [
            self._client.classify(task, images, top_k=len(names)).results
            for task, names in zip(self._tasks, self._labels, strict=True)
        ]
        return [
            {one.label: one.score for one in results[place].predictions or ()}
            for place in range(len(images))
            for results in by_task
        ]

    def load(self, images: Sequence[bytes], *, per_call: int, concurrency: int, seconds: float) -> Load:
        """Calls of so many pictures each, the tasks in turns."""
        prepared = list(itertools.islice(self._requests(images, per_call), 4 * len(self._tasks)))
        return run_mixed_load(urlsplit(self._url).port or 80, prepared, concurrency=concurrency, seconds=seconds)

    def _requests(self, images: Sequence[bytes], per_call: int) -> Iterator[bytes]:
        endless = itertools.cycle(images)
        for task in itertools.cycle(self._tasks):
            path = f"/v1/tasks/{task}/classify"
            files = [("images", (str(place), next(endless))) for place in range(per_call)]
            request = httpx.Request("POST", f"{self._url}{path}", files=files)
            yield request_bytes(path, request.read(), content_type=request.headers["content-type"])

    def close(self) -> None:
        self._client.close()


@contextmanager
def served(config: ServingConfig, labels: Sequence[list[str]]) -> Iterator[RunningService]:
    """The service on a Ray that is connected, with these tasks in it."""
    with running(config) as url:
        service = RunningService(url, labels)
        try:
            yield service
        finally:
            service.close()


def replica_uses() -> list[ReplicaUse]:
    """Of every replica that runs on this Ray cluster."""
    found = []
    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["name"].startswith("SERVE_REPLICA::"):
            actor = ray.get_actor(named["name"], namespace=named["namespace"])
            allocated, allocations = ray.get(actor.__ray_call__.remote(_cuda_use), timeout=60)
            found.append(ReplicaUse(named["name"], allocated, allocations))
    return found


def _cuda_use(_replica: Any) -> tuple[int, int]:
    """Called inside the process of a replica."""
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return 0, 0
    return torch.cuda.memory_allocated(), torch.cuda.memory_stats().get("allocation.all.allocated", 0)


def num_cpu_encoders() -> int:
    """Of the service that is to use the whole machine: the rest of the cores is for decoding, HTTP and the callers."""
    return max(1, (os.cpu_count() or 1) * 5 // 8)
