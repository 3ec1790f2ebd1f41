"""A small bundle, pictures and an in-process service for the tests of serving."""

import asyncio
import io
import struct
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from serving.config import ServingConfig
from serving.deployments.hypernetwork import Hypernetwork
from serving.deployments.image_encoder import ImageEncoder
from serving.limits import ServingLimits
from serving.messages import HypernetworkBackend, ImageEncoderBackend
from serving.metrics import IngressMetrics, Metric, Publish
from serving.model_source import resolve
from serving.rate import Access
from serving.rollout.plan import FixedPlan
from serving.rollout.served_versions import ServedVersions
from serving.routes import create_http_app
from serving.schemas import StreamEnd, StreamLine
from serving.service import ClassifierService
from serving.task_store import TaskStore
from tests.unit.model_helpers import trained_like
from training.bundle import save_bundle
from training.model.hyperclip import HyperClipConfig
from training.model.registry import hyperclip_test
from training.preprocess import PreprocessConfig

IMAGE_SIZE = 32
LIMITS = ServingLimits(
    max_body_bytes=400_000, max_pixels=100_000, max_images=3, max_texts=4, max_top_k=50, max_label_characters=40
)
Scenario = Callable[["LocalService"], Awaitable[None]]


def make_bundle(folder: Path, *, seed: int = 0, config: HyperClipConfig | None = None) -> Path:
    """A bundle of the test model whose hypernetwork gives different deltas to different names."""
    model = trained_like(config or hyperclip_test(), seed=seed)
    save_bundle(
        folder, model, preprocess=PreprocessConfig(image_size=IMAGE_SIZE), templates=["{}"], model_card="A test.", metrics={}
    )
    return folder


def picture(seed: int = 0, *, kind: str = "PNG", side: int = 48) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A few bytes that claim 30,000 x 30,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@dataclass
class LocalService:
    """The service with its deployments in this process, without Ray."""

    service: ClassifierService
    http: httpx.AsyncClient
    hypernetwork: HypernetworkBackend
    image_encoder: ImageEncoderBackend
    store: TaskStore


def local_service(config: ServingConfig, *, hypernetwork: HypernetworkBackend | None = None) -> LocalService:
    """Make it inside the event loop of a test, perhaps with another hypernetwork."""
    hypernetwork = hypernetwork or Hypernetwork(config, resolve(config))
    image_encoder = ImageEncoder(config, resolve(config))
    store = TaskStore(config.task_store_uri)
    metrics = IngressMetrics()
    versions = ServedVersions(
        FixedPlan(resolve(config)), hypernetwork=hypernetwork, limits=config.limits, metrics=metrics, num_recent_tasks=10
    )
    service = ClassifierService(
        versions=versions,
        hypernetwork=hypernetwork,
        image_encoder=image_encoder,
        store=store,
        limits=config.limits,
        metrics=metrics,
        task_cache_s=config.task_cache_s,
        task_ttl_s=config.task_ttl_s,
    )
    transport = httpx.ASGITransport(create_http_app(service, Access(config.tenants, config.limits)), raise_app_exceptions=False)
    http = httpx.AsyncClient(transport=transport, base_url="http://service")
    return LocalService(service, http, hypernetwork, image_encoder, store)


def play(config: ServingConfig, scenario: Scenario) -> None:
    """Run a scenario against a service of its own."""

    async def inside() -> None:
        local = local_service(config)
        async with local.http:
            await scenario(local)

    asyncio.run(inside())


class Told:
    """In the place of Ray: sums of counters and the last values of gauges, by name and values of the labels."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def publisher(self, metric: Metric) -> Publish:
        def publish(value: float, labels: Mapping[str, str]) -> None:
            key = (metric.name, *labels.values())
            self.values[key] = value + (self.values.get(key, 0) if metric.kind == "counter" else 0)

        return publish


def check_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """That the response is a problem document with this status; returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status and body["title"] and body["detail"]
    assert body["type"].startswith("urn:hyperclip:problem:")
    return body


def parsed_stream(text: str) -> tuple[dict[int, StreamLine], StreamEnd]:
    """Lines by number of the picture, each there once, and the last one."""
    *lines, end = text.splitlines()
    found = [StreamLine.model_validate_json(line) for line in lines]
    assert len({line.index for line in found}) == len(found)
    return {line.index: line for line in found}, StreamEnd.model_validate_json(end)
