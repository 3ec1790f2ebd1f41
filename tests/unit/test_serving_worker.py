"""An encoder replica without Ray: calls that fail, that find no room, that are cancelled, and two models side by side."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serving.config import BatchingConfig, ServingConfig
from serving.engines.image_worker import FAILED, ImageWorker, SharedByModels
from serving.limits import ServingLimits
from serving.messages import ENDING, OVERLOADED, Classified, Embedded, Refused
from serving.metrics import EncoderMetrics
from serving.task_record import make_record
from serving.task_store import TaskStore
from tests.unit.serving_helpers import make_bundle, picture
from training.bundle import Bundle, load_bundle
from training.specialize import specialize

TASKS = (("cat", "dog"), ("car", "bus", "tram"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    return [load_bundle(make_bundle(tmp_path_factory.mktemp("model") / "bundle", seed=seed)) for seed in (0, 1)]


class Replica:
    """Two models, and two tasks made by each."""

    def __init__(self, bundles: list[Bundle], folder: Path, batching: BatchingConfig) -> None:
        limits = ServingLimits(max_images=4)
        config = ServingConfig(bundle_uri="unused", task_store_uri=str(folder), batching=batching, limits=limits)
        store = TaskStore(config.task_store_uri)
        self.shared = SharedByModels(batching, EncoderMetrics())
        self.workers = [ImageWorker(bundle, config, shared=self.shared) for bundle in bundles]
        self.records = [make_record(tenant="t", labels=labels, templates=None, pinned_version=None) for labels in TASKS]
        self.specializations = [
            [store.put_encoder(record.task_id, specialize(bundle, record.labels), bundle) for record in self.records]
            for bundle in bundles
        ]

    async def classify(self, *images: bytes, task: int = 0, model: int = 0) -> list[Classified | Refused] | Refused:
        return await self.workers[model].classify(
            images,
            task_id=self.records[task].task_id,
            specialization_id=self.specializations[model][task],
            parameters="specialized",
            top_k=9,
            tenant="t",
        )

    def damage(self, task: int) -> None:
        """Make the forward pass fail on every picture of a task that is resident."""
        key = self.specializations[0][task]
        found = self.shared.resident.get(key)
        assert found is not None
        self.shared.resident.put(key, replace(found, parameters=found.parameters[:-1]))


@pytest.fixture
def play(bundles: list[Bundle], tmp_path: Path) -> Callable[..., None]:
    def play(scenario: Callable[[Replica], Awaitable[None]], batching: BatchingConfig) -> None:
        async def inside() -> None:
            async with asyncio.timeout(60):
                replica = Replica(bundles, tmp_path, batching)
                await scenario(replica)
                await replica.shared.close()

        asyncio.run(inside())

    return play


TOGETHER = BatchingConfig(max_batch_size=4, batch_wait_timeout_s=60)
"""A batch runs when it is full."""


def scores(answer: list[Classified | Refused] | Refused) -> list[tuple[str, float, float]]:
    assert not isinstance(answer, Refused) and isinstance(answer[0], Classified)
    return [(one.label, round(one.score, 4), round(one.match, 4)) for one in answer[0].predictions]


def test_pictures_of_tasks_and_models_share_a_batch(play: Callable[..., None]) -> None:
    async def scenario(replica: Replica) -> None:
        cases = [(task, model) for task in (0, 1) for model in (0, 1)]
        together = await asyncio.gather(*(replica.classify(picture(), task=task, model=model) for task, model in cases))
        assert [one[0].batch_size for one in together if not isinstance(one, Refused) and isinstance(one[0], Classified)] == [
            4
        ] * 4
        four = [picture(), picture(1), picture(2), picture(3)]  # a batch of their own
        for answer, (task, model) in zip(together, cases, strict=True):
            assert scores(answer) == scores(await replica.classify(*four, task=task, model=model))
        assert len({tuple(scores(answer)) for answer in together}) == 4

    play(scenario, TOGETHER)


def test_a_picture_on_which_the_pass_fails_fails_alone(play: Callable[..., None]) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.classify(*[picture()] * 4, task=1)
        replica.damage(1)
        good, bad = await asyncio.gather(replica.classify(*[picture()] * 3, task=0), replica.classify(picture(), task=1))
        assert bad == [FAILED]
        assert not isinstance(good, Refused) and all(isinstance(one, Classified) for one in good)

    play(scenario, TOGETHER)


def test_an_unreadable_picture_takes_nobody_along(play: Callable[..., None]) -> None:
    async def scenario(replica: Replica) -> None:
        found = await replica.classify(picture(), b"GIF89a", picture(), picture()[:100])
        assert not isinstance(found, Refused)
        assert [one.status if isinstance(one, Refused) else 200 for one in found] == [200, 415, 200, 422]

    play(scenario, BatchingConfig(batch_wait_timeout_s=0))


def test_a_call_without_room_is_refused_as_a_whole(play: Callable[..., None]) -> None:
    async def scenario(replica: Replica) -> None:
        waiting = asyncio.create_task(replica.classify(picture(), picture(), picture()))
        while replica.shared.batcher.num_waiting != 3:
            await asyncio.sleep(0)
        assert await replica.classify(picture(), picture()) == OVERLOADED
        while replica.shared.batcher.num_waiting != 3:  # the one picture that had found room leaves
            await asyncio.sleep(0)
        last = asyncio.create_task(replica.classify(picture()))
        while not replica.shared.batcher.is_full:
            await asyncio.sleep(0)
        assert await replica.classify(b"not looked at") == OVERLOADED
        await replica.shared.batcher.close()
        assert isinstance(await waiting, list) and isinstance(await last, list)

    play(scenario, BatchingConfig(max_batch_size=64, batch_wait_timeout_s=60, max_waiting_images=4))


def test_a_cancelled_call_leaves_no_picture_behind(play: Callable[..., None]) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.classify(*[picture()] * 4)
        gone = asyncio.create_task(replica.classify(picture(), picture(), picture()))
        while replica.shared.batcher.num_waiting != 3:
            await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        assert replica.shared.batcher.num_waiting == 0
        assert isinstance(await replica.classify(*[picture()] * 4), list)

    play(scenario, TOGETHER)


def test_an_ending_replica_answers_what_waits_and_refuses_the_rest(play: Callable[..., None]) -> None:
    async def scenario(replica: Replica) -> None:
        await replica.classify(*[picture()] * 4)
        waiting = asyncio.create_task(replica.classify(picture()))
        while replica.shared.batcher.num_waiting != 1:
            await asyncio.sleep(0)
        await replica.shared.batcher.close()
        assert isinstance(await waiting, list)
        assert await replica.classify(picture()) == ENDING
        embedded = await replica.workers[0].embed([picture()], tenant="t")
        assert embedded == ENDING

    play(scenario, TOGETHER)


def test_neutral_features_join_too(play: Callable[..., None]) -> None:
    async def scenario(replica: Replica) -> None:
        found = await replica.workers[0].embed([picture(seed) for seed in range(4)], tenant="t")
        assert not isinstance(found, Refused) and all(isinstance(one, Embedded) for one in found)

    play(scenario, TOGETHER)
