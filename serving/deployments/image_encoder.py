"""The deployment that looks at pictures.  Hot: pictures of any tasks share its forward passes."""

import asyncio

import torch
from ray.serve.handle import DeploymentHandle

from serving.config import ServingConfig
from serving.deployments.replica import set_up_replica
from serving.devices import usable_device
from serving.engines.image_encoder import model_info
from serving.engines.image_worker import ImageWorker, SharedByModels
from serving.messages import NOT_LOADED, Classified, Embedded, Refused
from serving.metrics import EncoderMetrics
from serving.model_source import ServedModel, load
from serving.rollout.loaded_models import LoadedModel, LoadedModels
from serving.rollout.serve_source import plan_source
from serving.schemas import ModelInfo, Parameters
from serving.tracing import traced


class ImageEncoder:
    """A thin shell around one `ImageWorker` a model."""

    def __init__(self, config: ServingConfig, origin: ServedModel | DeploymentHandle) -> None:
        """Args: origin, the one model to serve, or the `Rollout` that says which."""
        metrics = EncoderMetrics(set_up_replica(config))
        torch.set_num_threads(config.image_encoder.num_threads)
        self._config = config
        self._shared = SharedByModels(config.batching, metrics)
        self._models = LoadedModels(plan_source(config, origin), self._load, part="image_encoder")
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
        tenant: str,
    ) -> list[Classified | Refused] | Refused:
        if (model := await self._models.find(digest)) is None:
            return NOT_LOADED
        return await model.engine.classify(
            images, task_id=task_id, specialization_id=specialization_id, parameters=parameters, top_k=top_k, tenant=tenant
        )

    @traced("image_encoder.embed")
    async def embed(self, images: list[bytes], *, digest: str, tenant: str) -> list[Embedded | Refused] | Refused:
        if (model := await self._models.find(digest)) is None:
            return NOT_LOADED
        return await model.engine.embed(images, tenant=tenant)

    async def close(self) -> None:
        """Answer what waits.  Serve ends a replica only when none of its calls is left; this is for use without Serve."""
        await self._shared.close()

    def _load(self, served: ServedModel) -> LoadedModel[ImageWorker]:
        bundle = load(served, device=usable_device(self._config.image_encoder))
        info = model_info(bundle, name=served.name, version=served.version)
        return LoadedModel(info, ImageWorker(bundle, self._config, shared=self._shared))
