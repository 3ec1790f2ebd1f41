"""The deployment that makes encoders: text encoder and hypernetwork.  Rare and heavy."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from infra.errors import BadInputError, HyperClipError
from serving.config import ServingConfig
from serving.engines.hypernetwork import HypernetworkEngine
from serving.engines.image_encoder import model_info
from serving.messages import Embedded, Refused, Specialized
from serving.model_source import ServedModel, fetch
from serving.schemas import ModelInfo
from serving.single_flight import SingleFlight
from serving.task_record import TaskRecord, specialization_id
from serving.task_store import NotSpecializedError, TaskStore
from training.bundle import load_bundle
from training.specialize import SpecializedEncoder

Result = TypeVar("Result")


class Hypernetwork:
    """Holds the whole model; works on one task at a time."""

    def __init__(self, config: ServingConfig, served: ServedModel) -> None:
        torch.set_num_threads(config.hypernetwork.num_threads)
        bundle = load_bundle(fetch(served), device=config.hypernetwork.device)
        self._engine = HypernetworkEngine(bundle, config.limits)
        self._info = model_info(bundle, name=served.name, version=served.version)
        self._store = TaskStore(config.task_store_uri)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hypernetwork")
        self._flights = SingleFlight()

    async def describe(self) -> ModelInfo:
        return self._info

    async def specialize(self, record: TaskRecord) -> Specialized | Refused:
        """Make and store the encoder of a task; several ingress replicas may ask for the same one."""
        return await self._flights.do(record.task_id, lambda: self._run(lambda: self._specialize(record)))

    async def embed_texts(self, texts: list[str]) -> list[Embedded] | Refused:
        found = await self._run(lambda: self._engine.embed_texts(texts))
        return found if isinstance(found, Refused) else [Embedded(features) for features in found]

    async def export(self, record: TaskRecord) -> bytes | Refused:
        """The edge package, kept beside the encoder once it was made."""
        return await self._flights.do(("export", record.task_id), lambda: self._run(lambda: self._export(record)))

    def _specialize(self, record: TaskRecord) -> Specialized:
        started = time.perf_counter()
        encoder = self._engine.specialize(record)
        specialization = self._store.put_encoder(record.task_id, encoder, self._engine.bundle)
        return Specialized(specialization, self._info, round((time.perf_counter() - started) * 1000, 3))

    def _export(self, record: TaskRecord) -> bytes:
        specialization = specialization_id(record.task_id, self._engine.bundle.digest)
        if (stored := self._store.get_package(record.task_id, specialization)) is not None:
            return stored
        package = self._engine.package(self._encoder(record, specialization))
        self._store.put_package(record.task_id, specialization, package)
        return package

    def _encoder(self, record: TaskRecord, specialization: str) -> SpecializedEncoder:
        try:
            return self._store.get_encoder(record.task_id, specialization, self._engine.bundle)
        except NotSpecializedError:
            encoder = self._engine.specialize(record)
            self._store.put_encoder(record.task_id, encoder, self._engine.bundle)
            return encoder

    async def _run(self, work: Callable[[], Result]) -> Result | Refused:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except BadInputError as error:
            return Refused(422, "invalid_request", str(error))
        except HyperClipError as error:
            return Refused(500, "failed", str(error))
