"""The deployment that makes encoders: text encoder and hypernetwork.  Rare and heavy."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from ray.serve.handle import DeploymentHandle

from infra.errors import BadInputError, HyperClipError
from serving.config import ServingConfig
from serving.deployments.replica import set_up_replica
from serving.devices import usable_device
from serving.engines.hypernetwork import HypernetworkEngine
from serving.engines.image_encoder import model_info
from serving.engines.text_features import TextFeatureCache
from serving.messages import NOT_LOADED, Embedded, Refused, Specialized
from serving.metrics import HypernetworkMetrics
from serving.model_source import ServedModel, load
from serving.rollout.loaded_models import LoadedModel, LoadedModels
from serving.rollout.plan import Plan
from serving.rollout.serve_source import plan_source
from serving.schemas import ModelInfo
from serving.single_flight import SingleFlight
from serving.task_ledger import TaskLedger
from serving.task_record import TaskRecord, specialization_id
from serving.task_store import NotSpecializedError, TaskStore
from serving.task_sweep import sweep, sweep_encoders
from serving.tracing import traced
from training.specialize import SpecializedEncoder

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


MAX_SWEEP_INTERVAL_S = 3600.0


class Hypernetwork:
    """Holds whole models; works on one task at a time."""

    def __init__(self, config: ServingConfig, origin: ServedModel | DeploymentHandle) -> None:
        """Args: origin, the one model to serve, or the `Rollout` that says which."""
        self._metrics = HypernetworkMetrics(set_up_replica(config))
        torch.set_num_threads(config.hypernetwork.num_threads)
        self._config = config
        self._store = TaskStore(config.task_store_uri)
        self.recalled = threading.Event()
        """Label features made before a restart have been read."""
        self._text_features = TextFeatureCache(capacity_bytes=config.text_feature_bytes, metrics=self._metrics)
        self._models = LoadedModels(plan_source(config, origin), self._load, part="hypernetwork", warm=self._warm)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hypernetwork")
        self._flights = SingleFlight()
        if config.follows:
            self._following = asyncio.get_running_loop().create_task(self._models.follow(config.rollout.sync_interval_s))

        if config.task_ttl_s is not None:
            threading.Thread(target=self._sweep, args=(config.task_ttl_s,), name="sweep", daemon=True).start()

    @traced("hypernetwork.describe")
    async def describe(self) -> tuple[ModelInfo, ...]:
        """The models held here."""
        return self._models.infos()

    @traced("hypernetwork.specialize")
    async def specialize(self, record: TaskRecord, *, digest: str) -> Specialized | Refused:
        """Make and store the encoder of a task; several ingress replicas may ask for the same one."""
        key = ("specialize", record.task_id, digest)
        return await self._flights.do(key, lambda: self._run(digest, lambda engine: self._specialize(engine, record)))

    @traced("hypernetwork.embed_texts")
    async def embed_texts(self, texts: list[str], *, digest: str) -> list[Embedded] | Refused:
        found = await self._run(digest, lambda engine: engine.embed_texts(texts))
        return found if isinstance(found, Refused) else [Embedded(features) for features in found]

    @traced("hypernetwork.export")
    async def export(self, record: TaskRecord, *, digest: str) -> bytes | Refused:
        """The edge package, kept beside the encoder once it was made."""
        key = ("export", record.task_id, digest)
        return await self._flights.do(key, lambda: self._run(digest, lambda engine: self._export(engine, record)))

    def _load(self, served: ServedModel) -> LoadedModel[HypernetworkEngine]:
        bundle = load(served, device=usable_device(self._config.hypernetwork))
        info = model_info(bundle, name=served.name, version=served.version)
        engine = HypernetworkEngine(bundle, self._config.limits, text_features=self._text_features)
        threading.Thread(target=self._recall, args=(engine,), name="recall", daemon=True).start()
        return LoadedModel(info, engine)

    def _recall(self, engine: HypernetworkEngine) -> None:
        """Take label features from the encoders that this model made before a restart, until memory is full."""
        try:
            for task in self._store.tasks_with_encoders():
                if self._text_features.full:
                    return
                specialization = specialization_id(task, engine.bundle.digest)
                with contextlib.suppress(NotSpecializedError):  # made by another model only, or damaged
                    engine.remember(self._store.get_encoder(task, specialization, engine.bundle))
        except Exception:  # the store is away: labels are encoded anew
            logger.exception("cannot read the label features of stored encoders")
        finally:
            self.recalled.set()

    async def _warm(self, plan: Plan, digest: str) -> None:
        """Specialize recent tasks for the next champion, one by one, so that users' calls come in between."""
        for key in plan.warm:
            if await asyncio.to_thread(self._store.has_encoder, key.task_id, specialization_id(key.task_id, digest)):
                continue
            record = await asyncio.to_thread(self._store.get, key.task_id, tenant=key.tenant)
            if record is not None:  # or it was deleted
                await self.specialize(record, digest=digest)

    def _sweep(self, ttl_s: float) -> None:
        """Remove what is not used again and again; several replicas may do it at the same time.

        A model gone between two sweeps keeps its encoders until the second: its champion may have been taken back.
        """
        ledger, before = TaskLedger(self._store.uri), self._models.digests()
        while True:
            held = self._models.digests()
            try:
                self._metrics.swept(sweep(self._store, ledger, ttl_s=ttl_s, now=time.time()))
                sweep_encoders(self._store, digests=before | held)
            except Exception:  # the store is away
                logger.exception("cannot remove unused tasks and encoders")
            before = held
            time.sleep(min(MAX_SWEEP_INTERVAL_S, ttl_s / 10))

    def _specialize(self, engine: HypernetworkEngine, record: TaskRecord) -> Specialized:
        """What another replica has stored in the meantime is taken, if it is whole."""
        started = time.perf_counter()
        specialization = specialization_id(record.task_id, engine.bundle.digest)
        self._encoder(engine, record, specialization)
        return Specialized(specialization, round((time.perf_counter() - started) * 1000, 3))

    def _export(self, engine: HypernetworkEngine, record: TaskRecord) -> bytes:
        specialization = specialization_id(record.task_id, engine.bundle.digest)
        if (stored := self._store.get_package(record.task_id, specialization)) is not None:
            return stored
        package = engine.package(self._encoder(engine, record, specialization))
        self._store.put_package(record.task_id, specialization, package)
        return package

    def _encoder(self, engine: HypernetworkEngine, record: TaskRecord, specialization: str) -> SpecializedEncoder:
        try:
            encoder = self._store.get_encoder(record.task_id, specialization, engine.bundle)
            engine.remember(encoder)
        except NotSpecializedError:
            encoder = engine.specialize(record)
            self._store.put_encoder(record.task_id, encoder, engine.bundle)
        return encoder

    async def _run(self, digest: str, work: Callable[[HypernetworkEngine], Result]) -> Result | Refused:
        if (model := await self._models.find(digest)) is None:
            return NOT_LOADED
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, model.engine)
        except BadInputError as error:
            return Refused(422, "invalid_request", str(error))
        except HyperClipError as error:
            return Refused(500, "failed", str(error))
