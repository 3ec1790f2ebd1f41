"""The deployment that looks at pictures.  Hot: pictures of any tasks share its forward passes."""

import torch
from ray import serve

from serving.config import ServingConfig
from serving.engines.image_encoder import EncodeItem, model_info
from serving.engines.image_worker import BatchedItem, ImageWorker
from serving.messages import Classified, Embedded, Refused
from serving.model_source import ServedModel, fetch
from serving.schemas import ModelInfo, Parameters
from training.bundle import load_bundle


class ImageEncoder:
    """A thin shell around `ImageWorker`: Serve gathers the batches."""

    def __init__(self, config: ServingConfig, served: ServedModel) -> None:
        torch.set_num_threads(config.image_encoder.num_threads)
        bundle = load_bundle(fetch(served), device=config.image_encoder.device)
        self._info = model_info(bundle, name=served.name, version=served.version)
        self._worker = ImageWorker(bundle, config, submit=self._encode_batch)
        self._encode_batch.set_max_batch_size(config.batching.max_batch_size)
        self._encode_batch.set_batch_wait_timeout_s(config.batching.batch_wait_timeout_s)

    async def describe(self) -> ModelInfo:
        return self._info

    async def classify(
        self, images: list[bytes], *, task_id: str, specialization_id: str, parameters: Parameters, top_k: int
    ) -> list[Classified | Refused] | Refused:
        return await self._worker.classify(
            images, task_id=task_id, specialization_id=specialization_id, parameters=parameters, top_k=top_k
        )

    async def embed(self, images: list[bytes]) -> list[Embedded | Refused]:
        return await self._worker.embed(images)

    @serve.batch
    async def _encode_batch(self, items: list[EncodeItem]) -> list[BatchedItem]:
        return await self._worker.run_batch(items)
