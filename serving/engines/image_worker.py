"""What an encoder replica does, without Ray: decode, find the parameters of the task, join a batch, answer.

A picture is decoded before it joins a batch, so an unreadable one never meets the others.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from infra.images import ImageError
from serving.config import BatchingConfig, ServingConfig
from serving.engines.batcher import Batched, Batcher, BatcherClosedError, ForwardError, QueueFullError
from serving.engines.image_encoder import EncodedItem, EncodeItem, ImageEncoderEngine, ReadyTask
from serving.engines.resident import ResidentEncoders
from serving.messages import ENDING, NOT_SPECIALIZED, OVERLOADED, Classified, Embedded, Refused
from serving.metrics import EncoderMetrics
from serving.schemas import ImageTimings, Parameters
from serving.single_flight import SingleFlight
from serving.task_store import NotSpecializedError, TaskStore
from training.bundle import Bundle

STATUS = {"not_an_image": 415, "too_many_pixels": 413, "truncated": 422}
FAILED = Refused(500, "failed", "the picture could not be classified; the service's log has the reason")


@dataclass(frozen=True)
class ModelItem:
    """A picture for one of the models of a replica."""

    engine: ImageEncoderEngine
    item: EncodeItem


class SharedByModels:
    """What the models of one replica share, so that each bound is one for all of them."""

    def __init__(self, config: BatchingConfig, metrics: EncoderMetrics) -> None:
        self.resident = ResidentEncoders(capacity_bytes=config.resident_bytes, metrics=metrics)
        self.decoders = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode")
        self.batcher: Batcher[ModelItem, EncodedItem] = Batcher(
            _run,
            max_batch_size=config.max_batch_size,
            wait_s=config.batch_wait_timeout_s,
            capacity=config.max_waiting_images,
        )

    async def close(self) -> None:
        """Answer what waits; what comes later is refused."""
        await self.batcher.close()
        self.decoders.shutdown(wait=False)


@dataclass(frozen=True)
class _Encoded:
    batched: Batched[EncodedItem]
    timings: ImageTimings


class ImageWorker:
    """One model, and the tasks it has met; reads those it has not from the task store."""

    def __init__(self, bundle: Bundle, config: ServingConfig, *, shared: SharedByModels) -> None:
        self._engine = ImageEncoderEngine(bundle)
        self._engine.warm_up(config.batching.max_batch_size)
        self._shared = shared
        self._max_pixels = config.limits.max_pixels
        self._store = TaskStore(config.task_store_uri)
        self._flights = SingleFlight()

    async def classify(
        self,
        images: Sequence[bytes],
        *,
        task_id: str,
        specialization_id: str,
        parameters: Parameters,
        top_k: int,
        tenant: str,
    ) -> list[Classified | Refused] | Refused:
        """Scores of each picture; `NOT_SPECIALIZED` when the store has no encoder for the task."""
        try:
            task = await self._task(task_id, specialization_id)
        except NotSpecializedError:
            return NOT_SPECIALIZED
        used = task if parameters == "specialized" else None
        found = await self._encode_all(images, used, task, top_k=top_k, tenant=tenant, turn=task_id)
        return found if isinstance(found, Refused) else [one if isinstance(one, Refused) else _classified(one) for one in found]

    async def embed(self, images: Sequence[bytes], *, tenant: str) -> list[Embedded | Refused] | Refused:
        """Neutral features of each picture."""
        found = await self._encode_all(images, None, None, top_k=0, tenant=tenant, turn="")
        if isinstance(found, Refused):
            return found
        return [one if isinstance(one, Refused) else Embedded(one.batched.result.features) for one in found]

    async def _task(self, task_id: str, specialization: str) -> ReadyTask:
        if (resident := self._shared.resident.get(specialization)) is not None:
            return resident
        return await self._flights.do(specialization, lambda: asyncio.to_thread(self._load, task_id, specialization))

    def _load(self, task_id: str, specialization: str) -> ReadyTask:
        task = self._engine.ready(self._store.get_encoder(task_id, specialization, self._engine.bundle))
        self._shared.resident.put(specialization, task)
        return task

    async def _encode_all(
        self,
        images: Sequence[bytes],
        parameters: ReadyTask | None,
        labels: ReadyTask | None,
        *,
        top_k: int,
        tenant: str,
        turn: str,
    ) -> list[_Encoded | Refused] | Refused:
        """All pictures of a call; the whole call is refused where there is no room for it, before anything is decoded."""
        if self._shared.batcher.is_full:
            return OVERLOADED

        async def encode(data: bytes) -> _Encoded | Refused:
            started = time.perf_counter()
            try:
                image = await asyncio.get_running_loop().run_in_executor(self._shared.decoders, self._decode, data)
            except ImageError as error:
                return Refused(STATUS[error.reason], error.reason, str(error))
            decoded = time.perf_counter()
            item = ModelItem(self._engine, EncodeItem(image, parameters, labels, top_k))
            try:
                batched = await self._shared.batcher.submit(item, tenant=tenant, task=turn)
            except ForwardError:
                return FAILED
            return _Encoded(batched, _timings(started, decoded, batched.forward_s))

        tasks = [asyncio.ensure_future(encode(data)) for data in images]
        try:
            return await asyncio.gather(*tasks)
        except QueueFullError:
            return OVERLOADED
        except BatcherClosedError:
            return ENDING
        finally:
            for task in tasks:
                task.cancel()  # those that are not done: the call has been refused

    def _decode(self, data: bytes) -> np.ndarray:
        return self._engine.decode(data, max_pixels=self._max_pixels)


def _run(items: Sequence[ModelItem]) -> list[EncodedItem]:
    """A forward pass a model; most batches hold pictures for one."""
    places: dict[ImageEncoderEngine, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.engine, []).append(place)
    found: dict[int, EncodedItem] = {}
    for engine, chosen in places.items():
        found.update(zip(chosen, engine.run([items[place].item for place in chosen]), strict=True))
    return [found[place] for place in range(len(items))]


def _classified(encoded: _Encoded) -> Classified:
    predictions = encoded.batched.result.predictions
    assert predictions is not None
    return Classified(predictions, encoded.batched.batch_size, encoded.timings)


def _timings(started: float, decoded: float, forward_s: float) -> ImageTimings:
    queue = time.perf_counter() - decoded - forward_s
    return ImageTimings(decode=_milliseconds(decoded - started), queue=_milliseconds(queue), forward=_milliseconds(forward_s))


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
