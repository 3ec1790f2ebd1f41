"""The deployment that looks at pictures.  Hot: pictures of any tasks share its forward passes."""

import asyncio

import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.config import ServingConfig
from serving.deployments.replica import set_up_replica
from serving.engines.image_encoder import EncodeItem, model_info
from serving.engines.image_worker import BatchedItem, ImageWorker
from serving.engines.resident import ResidentEncoders
from serving.messages import NOT_LOADED, Classified, Embedded, Refused
from serving.model_source import ServedModel, load
from serving.rollout.loaded_models import LoadedModel, LoadedModels
from serving.rollout.serve_source import plan_source
from serving.schemas import ModelInfo, Parameters
from serving.tracing import traced


class ImageEncoder:
    """A thin shell around one `ImageWorker` a model: Serve gathers the batches."""

    def __init__(self, config: ServingConfig, origin: ServedModel | DeploymentHandle) -> None:
        """Args: origin, the one model to serve, or the `Rollout` that says which."""
        set_up_replica(config)
        torch.set_num_threads(config.image_encoder.num_threads)
        self._config = config
        self._resident = ResidentEncoders(capacity_bytes=config.batching.resident_bytes)  # for all models together
        self._models = LoadedModels(plan_source(config, origin), self._load, part="image_encoder")
        self._encode_batch.set_max_batch_size(config.batching.max_batch_size)
        self._encode_batch.set_batch_wait_timeout_s(config.batching.batch_wait_timeout_s)
        if config.follows:
            self._following = asyncio.get_running_loop().create_task(self._models.follow(config.rollout.sync_interval_s))

    @traced("image_encoder.describe")
    async def describe(self) -> tuple[ModelInfo, ...]:
        """The models held here."""
        return self._models.infos()

    @traced("image_encoder.classify")
    async def classify(
        self,
        images: list[bytes],
        *,
        task_id: str,
        specialization_id: str,
        digest: str,
        parameters: Parameters,
        top_k: int,
    ) -> list[Classified | Refused] | Refused:
        if (model := await self._models.find(digest)) is None:
            return NOT_LOADED
        return await model.engine.classify(
            images, task_id=task_id, specialization_id=specialization_id, parameters=parameters, top_k=top_k
        )

    @traced("image_encoder.embed")
    async def embed(self, images: list[bytes], *, digest: str) -> list[Embedded | Refused] | Refused:
        if (model := await self._models.find(digest)) is None:
            return NOT_LOADED
        return await model.engine.embed(images)

    def _load(self, served: ServedModel) -> LoadedModel[ImageWorker]:
        bundle = load(served, device=self._config.image_encoder.device)
        info = model_info(bundle, name=served.name, version=served.version)

        async def submit(item: EncodeItem) -> BatchedItem:
            return await self._encode_batch((worker, item))

        worker = ImageWorker(bundle, self._config, submit=submit, resident=self._resident)
        return LoadedModel(info, worker)

    @serve.batch
    async def _encode_batch(self, items: list[tuple[ImageWorker, EncodeItem]]) -> list[BatchedItem]:
        """Pictures for different models may have met: each model gets its own."""
        places: dict[ImageWorker, list[int]] = {}
        for place, (worker, _) in enumerate(items):
            places.setdefault(worker, []).append(place)
        runs = await asyncio.gather(
            *(worker.run_batch([items[place][1] for place in chosen]) for worker, chosen in places.items())
        )
        found: dict[int, BatchedItem] = {}
        for chosen, run in zip(places.values(), runs, strict=True):
            found.update(zip(chosen, run, strict=True))
        return [found[place] for place in range(len(items))]
