"""The image encoder built with Ray Serve alone: a folded encoder per model id, `serve.multiplexed`, `@serve.batch`.

Pictures are decoded, normalized and scored by the code that ours uses, and the weights come from the same task store, so what
differs is one encoder a task and a forward pass for each, where ours has one of both for all.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve

from serving.engines.image_encoder import ImageEncoderEngine
from serving.engines.predictions import best_labels
from serving.schemas import Prediction
from serving.task_store import TaskStore
from training.bundle import load_bundle
from training.fold import fold_image_encoder
from training.specialize import SpecializedEncoder


@dataclass(frozen=True)
class PeerSettings:
    """What there is to choose."""

    max_batch_size: int = 64
    """Of a batch that is then split by model id."""
    batch_wait_timeout_s: float = 0.0
    max_concurrent_batches: int = 1
    in_thread: bool = True
    """Whether the forward pass runs beside the event loop or in it."""


class FoldedTask:
    """A specialized encoder as plain convolutions, and its labels."""

    def __init__(self, engine: ImageEncoderEngine, encoder: SpecializedEncoder) -> None:
        folded = fold_image_encoder(engine.bundle.model.image_encoder, encoder.delta)
        self._folded = folded.to(memory_format=torch.channels_last)
        self._engine = engine
        self._task = engine.ready(encoder)

    @torch.inference_mode()
    def run(self, images: Sequence[np.ndarray], top_k: int) -> list[tuple[Prediction, ...]]:
        task = self._task
        features = self._folded(self._engine.normalized(images))
        logits = (task.logit_scale * (features @ task.text_features.T)).numpy()
        return [best_labels(task.labels, row, logit_bias=task.logit_bias, top_k=top_k) for row in logits]


def multiplexed(
    bundle_folder: Path, store_uri: str, *, max_models: int, decode_threads: int, settings: PeerSettings
) -> serve.Application:
    """The application with room for so many models."""

    class Multiplexed:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self._engine = ImageEncoderEngine(load_bundle(bundle_folder))
            self._store = TaskStore(store_uri)
            self._decoders = ThreadPoolExecutor(decode_threads)
            self._thread = ThreadPoolExecutor(1)

        @serve.multiplexed(max_num_models_per_replica=max_models)
        async def get_model(self, model_id: str) -> FoldedTask:
            task_id, _, specialization = model_id.partition(":")
            return await asyncio.to_thread(self._load, task_id, specialization)

        def _load(self, task_id: str, specialization: str) -> FoldedTask:
            return FoldedTask(self._engine, self._store.get_encoder(task_id, specialization, self._engine.bundle))

        @serve.batch(
            max_batch_size=settings.max_batch_size,
            batch_wait_timeout_s=settings.batch_wait_timeout_s,
            max_concurrent_batches=settings.max_concurrent_batches,
        )
        async def _encode(self, items: list[tuple[np.ndarray, int]]) -> list[tuple[Prediction, ...]]:
            model = await self.get_model(serve.get_multiplexed_model_id())
            images, top_k = [image for image, _ in items], max(top_k for _, top_k in items)
            if not settings.in_thread:
                return model.run(images, top_k)
            return await asyncio.get_running_loop().run_in_executor(self._thread, model.run, images, top_k)

        async def classify(self, images: list[bytes], top_k: int) -> list[tuple[Prediction, ...]]:
            loop = asyncio.get_running_loop()
            pixels = [await loop.run_in_executor(self._decoders, self._decode, data) for data in images]
            call: Any = self._encode
            return await asyncio.gather(*(call((one, top_k)) for one in pixels))

        def _decode(self, data: bytes) -> np.ndarray:
            return self._engine.decode(data, max_pixels=40_000_000)

    options: dict[str, Any] = {"max_ongoing_requests": 64, "ray_actor_options": {"num_cpus": 0.1}}
    return serve.deployment(Multiplexed, **options).bind()
