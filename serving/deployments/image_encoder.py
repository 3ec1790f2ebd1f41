"""The deployment that looks at pictures.  Hot: pictures of any tasks share its forward passes."""

import torch

from serving.config import ServingConfig
from serving.deployments.replica import set_up_replica
from serving.engines.image_encoder import model_info
from serving.engines.image_worker import ImageWorker, SharedByModels
from serving.loaded_models import LoadedModel, LoadedModels
from serving.messages import NOT_LOADED, Classified, Embedded, Refused
from serving.model_source import ServedModel, fetch
from serving.schemas import ModelInfo, Parameters
from serving.tracing import traced
from training.bundle import load_bundle


class ImageEncoder:
    """A thin shell around one `ImageWorker` a model."""

    def __init__(self, config: ServingConfig, served: ServedModel) -> None:
        set_up_replica(config)
        torch.set_num_threads(config.image_encoder.num_threads)
        self._config = config
        self._shared = SharedByModels(config.batching)
        self._models = LoadedModels[ImageWorker]()
        self._models.put(self._load(served))

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
        if (model := self._models.get(digest)) is None:
            return NOT_LOADED
        return await model.engine.classify(
            images, task_id=task_id, specialization_id=specialization_id, parameters=parameters, top_k=top_k, tenant=tenant
        )

    @traced("image_encoder.embed")
    async def embed(self, images: list[bytes], *, digest: str, tenant: str) -> list[Embedded | Refused] | Refused:
        if (model := self._models.get(digest)) is None:
            return NOT_LOADED
        return await model.engine.embed(images, tenant=tenant)

    async def close(self) -> None:
        """Answer what waits.  Serve ends a replica only when none of its calls is left; this is for use without Serve."""
        await self._shared.close()

    def _load(self, served: ServedModel) -> LoadedModel[ImageWorker]:
        bundle = load_bundle(fetch(served), device=self._config.image_encoder.device)
        info = model_info(bundle, name=served.name, version=served.version)
        return LoadedModel(info, ImageWorker(bundle, self._config, shared=self._shared))
