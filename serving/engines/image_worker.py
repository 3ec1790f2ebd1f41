"""What an encoder replica does, without Ray: decode, find the encoder of the task, join a batch, answer.

A picture is decoded before it joins a batch, so an unreadable one never meets the others.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from infra.images import ImageError
from serving.config import ServingConfig
from serving.engines.image_encoder import EncodedItem, EncodeItem, ImageEncoderEngine
from serving.engines.predictions import best_labels
from serving.engines.resident import ResidentEncoders
from serving.messages import NOT_SPECIALIZED, Classified, Embedded, Refused
from serving.schemas import ImageTimings, Parameters
from serving.single_flight import SingleFlight
from serving.task_store import NotSpecializedError, TaskStore
from training.bundle import Bundle
from training.specialize import SpecializedEncoder

STATUS = {"not_an_image": 415, "too_many_pixels": 413, "truncated": 422}


@dataclass(frozen=True)
class BatchedItem:
    """One picture after its batch has run."""

    item: EncodedItem
    batch_size: int
    forward_s: float


@dataclass(frozen=True)
class _Encoded:
    batched: BatchedItem
    timings: ImageTimings


class ImageWorker:
    """Holds one model and the encoders of the tasks it has met; reads those it has not from the task store."""

    def __init__(
        self,
        bundle: Bundle,
        config: ServingConfig,
        *,
        submit: Callable[[EncodeItem], Awaitable[BatchedItem]],
        resident: ResidentEncoders,
    ) -> None:
        """For one model.

        Args:
            submit: puts a picture into the next batch, which has to come back through `run_batch`.
            resident: shared by the models of a replica, so that its bound is one for all.
        """
        self._engine = ImageEncoderEngine(bundle)
        self._submit = submit
        self._max_pixels = config.limits.max_pixels
        self._store = TaskStore(config.task_store_uri)
        self._resident = resident
        self._flights = SingleFlight()
        self._decoders = ThreadPoolExecutor(config.batching.decode_threads, thread_name_prefix="decode")
        self._encoder_thread = ThreadPoolExecutor(1, thread_name_prefix="encode")  # the model serves one batch at a time

    async def classify(
        self, images: Sequence[bytes], *, task_id: str, specialization_id: str, parameters: Parameters, top_k: int
    ) -> list[Classified | Refused] | Refused:
        """Scores of each picture, or `NOT_SPECIALIZED` when the store has no encoder for the task."""
        try:
            encoder = await self._encoder(task_id, specialization_id)
        except NotSpecializedError:
            return NOT_SPECIALIZED
        used = encoder if parameters == "specialized" else None
        results = await asyncio.gather(*(self._encode(image, used, encoder) for image in images))
        return [result if isinstance(result, Refused) else _classified(result, encoder, top_k) for result in results]

    async def embed(self, images: Sequence[bytes]) -> list[Embedded | Refused]:
        """Neutral features of each picture."""
        results = await asyncio.gather(*(self._encode(image, None, None) for image in images))
        return [result if isinstance(result, Refused) else Embedded(result.batched.item.features.numpy()) for result in results]

    async def run_batch(self, items: Sequence[EncodeItem]) -> list[BatchedItem]:
        """One forward pass, off the event loop."""
        encoded, seconds = await asyncio.get_running_loop().run_in_executor(self._encoder_thread, self._run, items)
        return [BatchedItem(item, len(items), seconds) for item in encoded]

    def _run(self, items: Sequence[EncodeItem]) -> tuple[list[EncodedItem], float]:
        started = time.perf_counter()
        encoded = self._engine.run(items)
        return encoded, time.perf_counter() - started

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
        batched = await asyncio.shield(asyncio.ensure_future(self._submit(EncodeItem(image, parameters, labels))))
        queue = time.perf_counter() - decoded - batched.forward_s
        timings = ImageTimings(
            decode=_milliseconds(decoded - started), queue=_milliseconds(queue), forward=_milliseconds(batched.forward_s)
        )
        return _Encoded(batched, timings)

    def _decode(self, data: bytes) -> np.ndarray:
        return self._engine.decode(data, max_pixels=self._max_pixels)


def _classified(encoded: _Encoded, encoder: SpecializedEncoder, top_k: int) -> Classified:
    batched = encoded.batched
    assert batched.item.scores is not None
    return Classified(best_labels(encoder.task.labels, batched.item.scores, top_k), batched.batch_size, encoded.timings)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
