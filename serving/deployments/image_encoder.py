"""The deployment that looks at pictures.  Hot: pictures of any tasks share its forward passes."""

import asyncio
from functools import partial

import torch
from ray import serve

from serving.config import ServingConfig
from serving.deployments.replica import set_up_replica
from serving.devices import usable_device
from serving.engines.image_encoder import EncodeItem, model_info
from serving.engines.image_worker import BatchedItem, ImageWorker
from serving.engines.resident import ResidentEncoders
from serving.loaded_models import LoadedModel, LoadedModels
from serving.messages import NOT_LOADED, Classified, Embedded, Refused
from serving.model_source import ServedModel, fetch
from serving.schemas import ModelInfo, Parameters
from serving.tracing import traced
from training.bundle import load_bundle


class ImageEncoder:
    """A thin shell around one `ImageWorker` a model: Serve gathers the batches."""

    def __init__(self, config: ServingConfig, served: ServedModel) -> None:
        set_up_replica(config)
        torch.set_num_threads(config.image_encoder.num_threads)
        self._config = config
        self._resident = ResidentEncoders(capacity_bytes=config.batching.resident_bytes)  # for all models together
        self._models = LoadedModels[ImageWorker]()
        self._models.put(self._load(served))
        self._encode_batch.set_max_batch_size(config.batching.max_batch_size)
        self._encode_batch.set_batch_wait_timeout_s(config.batching.batch_wait_timeout_s)

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
        if (model := self._models.get(digest)) is None:
            return NOT_LOADED
        return await model.engine.classify(
            images, task_id=task_id, specialization_id=specialization_id, parameters=parameters, top_k=top_k
        )

    @traced("image_encoder.embed")
    async def embed(self, images: list[bytes], *, digest: str) -> list[Embedded | Refused] | Refused:
        if (model := self._models.get(digest)) is None:
            return NOT_LOADED
        return await model.engine.embed(images)

    def _load(self, served: ServedModel) -> LoadedModel[ImageWorker]:
        bundle = load_bundle(fetch(served), device=usable_device(self._config.image_encoder))
        info = model_info(bundle, name=served.name, version=served.version)
        submit = partial(self._submit, info.digest)
        return LoadedModel(info, ImageWorker(bundle, self._config, submit=submit, resident=self._resident))

    async def _submit(self, digest: str, item: EncodeItem) -> BatchedItem:
        return await self._encode_batch((digest, item))

    @serve.batch
    async def _encode_batch(self, items: list[tuple[str, EncodeItem]]) -> list[BatchedItem]:
        """Pictures for different models may have met: each model gets its own."""
        places: dict[str, list[int]] = {}
        for place, (digest, _) in enumerate(items):
            places.setdefault(digest, []).append(place)
        runs = await asyncio.gather(
            *(self._run(digest, [items[place][1] for place in chosen]) for digest, chosen in places.items())
        )
        found: dict[int, BatchedItem] = {}
        for chosen, run in zip(places.values(), runs, strict=True):
            found.update(zip(chosen, run, strict=True))
        return [found[place] for place in range(len(items))]

    async def _run(self, digest: str, items: list[EncodeItem]) -> list[BatchedItem]:
        model = self._models.get(digest)
        assert model is not None
        return await model.engine.run_batch(items)
