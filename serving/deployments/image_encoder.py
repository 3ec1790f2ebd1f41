"""The deployment that looks at pictures.  Hot: it gathers pictures of any tasks into shared forward passes.

A picture is decoded before it joins a batch, so an unreadable one never meets the others.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from ray import serve

from infra.images import ImageError
from serving.config import ServingConfig
from serving.engines.image_encoder import EncodedItem, EncodeItem, ImageEncoderEngine, model_info
from serving.engines.predictions import best_labels
from serving.engines.resident import ResidentEncoders
from serving.messages import NOT_SPECIALIZED, Classified, Embedded, Refused
from serving.model_source import ServedModel, fetch
from serving.schemas import ImageTimings, ModelInfo, Parameters
from serving.single_flight import SingleFlight
from serving.task_store import NotSpecializedError, TaskStore
from training.bundle import load_bundle
from training.specialize import SpecializedEncoder

STATUS = {"not_an_image": 415, "too_many_pixels": 413, "truncated": 422}


@dataclass(frozen=True)
class _Encoded:
    """What came back for one picture, and how."""

    item: EncodedItem
    batch_size: int
    timings: ImageTimings


class ImageEncoder:
    """Holds the model and the encoders of the tasks it has met; reads those it has not from the task store."""

    def __init__(self, config: ServingConfig, served: ServedModel) -> None:
        torch.set_num_threads(config.image_encoder.num_threads)
        bundle = load_bundle(fetch(served), device=config.image_encoder.device)
        self._engine = ImageEncoderEngine(bundle)
        self._info = model_info(bundle, name=served.name, version=served.version)
        self._max_pixels = config.limits.max_pixels
        self._store = TaskStore(config.task_store_uri)
        self._resident = ResidentEncoders(capacity_bytes=config.batching.resident_bytes)
        self._flights = SingleFlight()
        self._decoders = ThreadPoolExecutor(config.batching.decode_threads, thread_name_prefix="decode")
        self._encoder_thread = ThreadPoolExecutor(1, thread_name_prefix="encode")  # the model serves one batch at a time
        self._encode_batch.set_max_batch_size(config.batching.max_batch_size)
        self._encode_batch.set_batch_wait_timeout_s(config.batching.batch_wait_timeout_s)

    async def describe(self) -> ModelInfo:
        return self._info

    async def classify(
        self, images: list[bytes], *, task_id: str, specialization_id: str, parameters: Parameters, top_k: int
    ) -> list[Classified | Refused] | Refused:
        """Scores of each picture, or `NOT_SPECIALIZED` when the store has no encoder for the task."""
        try:
            encoder = await self._encoder(task_id, specialization_id)
        except NotSpecializedError:
            return NOT_SPECIALIZED
        used = encoder if parameters == "specialized" else None
        results = await asyncio.gather(*(self._encode(image, used, encoder) for image in images))
        return [result if isinstance(result, Refused) else _classified(result, encoder, top_k) for result in results]

    async def embed(self, images: list[bytes]) -> list[Embedded | Refused]:
        """Neutral features of each picture."""
        results = await asyncio.gather(*(self._encode(image, None, None) for image in images))
        return [result if isinstance(result, Refused) else Embedded(result.item.features.numpy()) for result in results]

    async def _encoder(self, task_id: str, specialization: str) -> SpecializedEncoder:
        if (resident := self._resident.get(specialization)) is not None:
            return resident
        return await self._flights.do(specialization, lambda: asyncio.to_thread(self._load, task_id, specialization))

    def _load(self, task_id: str, specialization: str) -> SpecializedEncoder:
        encoder = self._engine.place(self._store.get_encoder(task_id, specialization, self._engine.bundle))
        self._resident.put(specialization, encoder)
        return encoder

    async def _encode(
        self, data: bytes, parameters: SpecializedEncoder | None, labels: SpecializedEncoder | None
    ) -> _Encoded | Refused:
        started = time.perf_counter()
        try:
            image = await asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, data)
        except ImageError as error:
            return Refused(STATUS[error.reason], error.reason, str(error))
        decoded = time.perf_counter()
        # a caller who goes away must not cancel a picture inside a batch: the others of the batch would wait for ever
        submitted = asyncio.ensure_future(self._encode_batch(EncodeItem(image, parameters, labels)))
        item, batch_size, forward = await asyncio.shield(submitted)
        queue = time.perf_counter() - decoded - forward
        timings = ImageTimings(
            decode=_milliseconds(decoded - started), queue=_milliseconds(queue), forward=_milliseconds(forward)
        )
        return _Encoded(item, batch_size, timings)

    def _decode(self, data: bytes) -> np.ndarray:
        return self._engine.decode(data, max_pixels=self._max_pixels)

    @serve.batch
    async def _encode_batch(self, items: list[EncodeItem]) -> list[tuple[EncodedItem, int, float]]:
        encoded, seconds = await asyncio.get_running_loop().run_in_executor(self._encoder_thread, self._run, items)
        return [(item, len(items), seconds) for item in encoded]

    def _run(self, items: Sequence[EncodeItem]) -> tuple[list[EncodedItem], float]:
        started = time.perf_counter()
        encoded = self._engine.run(items)
        return encoded, time.perf_counter() - started


def _classified(encoded: _Encoded, encoder: SpecializedEncoder, top_k: int) -> Classified:
    assert encoded.item.scores is not None
    return Classified(best_labels(encoder.task.labels, encoded.item.scores, top_k), encoded.batch_size, encoded.timings)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
