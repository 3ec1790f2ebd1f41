"""A small bundle, pictures and an in-process service for the tests of serving."""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from torch import nn

from serving.config import ServingConfig
from serving.deployments.hypernetwork import Hypernetwork
from serving.deployments.image_encoder import ImageEncoder
from serving.metrics import IngressMetrics
from serving.model_source import resolve
from serving.routes import create_http_app
from serving.service import ClassifierService
from serving.task_store import TaskStore
from training.bundle import save_bundle
from training.model.hyperclip import HyperClip
from training.model.registry import model_config
from training.preprocess import PreprocessConfig

IMAGE_SIZE = 32


def make_bundle(folder: Path, *, seed: int = 0) -> Path:
    """A bundle of the test model whose hypernetwork gives different deltas to different names."""
    torch.manual_seed(seed)
    model = HyperClip(model_config("hyperclip_test"))
    assert model.hypernetwork is not None
    nn.init.normal_(model.hypernetwork.output.weight, std=0.05)
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
    hypernetwork: Hypernetwork
    image_encoder: ImageEncoder
    store: TaskStore


def local_service(config: ServingConfig, **replaced: Any) -> LocalService:
    """Make it inside the event loop of a test; `replaced` gives other backends."""
    served = resolve(config)
    hypernetwork = replaced.get("hypernetwork") or Hypernetwork(config, served)
    image_encoder = replaced.get("image_encoder") or ImageEncoder(config, served)
    store = TaskStore(config.task_store_uri)
    service = ClassifierService(
        hypernetwork=hypernetwork,
        image_encoder=image_encoder,
        store=store,
        limits=config.limits,
        metrics=IngressMetrics(),
        task_cache_s=config.task_cache_s,
    )
    transport = httpx.ASGITransport(create_http_app(service), raise_app_exceptions=False)
    http = httpx.AsyncClient(transport=transport, base_url="http://service")
    return LocalService(service, http, hypernetwork, image_encoder, store)
