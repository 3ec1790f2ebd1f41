"""The HTTP interface when the hypernetwork is slow, asked too often or broken: shared work, 429, 503, 500."""

import asyncio
from collections.abc import Callable, Sequence

from serving.config import ServingConfig
from serving.messages import Embedded, Refused, Specialized
from serving.middleware import overloaded
from serving.schemas import ModelInfo
from serving.task_record import TaskRecord
from tests.unit.serving_helpers import LIMITS, LocalService, check_problem, local_service


class HeldHypernetwork:
    """Makes nothing until told, and counts what it was asked for."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.calls: list[str] = []
        self.fail: Exception | None = None

    async def describe(self) -> tuple[ModelInfo, ...]:
        model = ModelInfo(
            name="m", version="1", digest="0" * 64, architecture="a", image_size=32, embed_dim=2, num_generated=1,
            templates=("{}",), metrics={},
        )  # fmt: skip
        return (model,)

    async def specialize(self, record: TaskRecord, *, digest: str) -> Specialized | Refused:
        self.calls.append(record.task_id)
        await self.release.wait()
        if self.fail:
            raise self.fail
        return Specialized("x", 1.0)

    async def embed_texts(self, texts: Sequence[str], *, digest: str) -> list[Embedded] | Refused:
        raise NotImplementedError

    async def export(self, record: TaskRecord, *, digest: str) -> bytes | Refused:
        raise NotImplementedError


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)  # lets the other coroutines run; takes no time


def test_identical_tasks_asked_for_together_are_made_once(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        held = local.hypernetwork
        assert isinstance(held, HeldHypernetwork)
        same = [asyncio.create_task(local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})) for _ in range(5)]
        other = asyncio.create_task(local.http.post("/v1/tasks", json={"labels": ["tree"]}))
        await until(lambda: len(held.calls) == 2)
        same[0].cancel()  # the one who leaves does not take the others' answer along
        held.release.set()
        responses = await asyncio.gather(*same[1:], other)
        assert [response.status_code for response in responses] == [200] * 5
        assert len(held.calls) == 2

    async def with_backend() -> None:
        local = local_service(config, hypernetwork=HeldHypernetwork())
        await scenario(local)

    asyncio.run(with_backend())


def test_overload_is_shed_with_429_and_a_time_to_wait(config: ServingConfig) -> None:
    crowded = config.rebuilt(limits=LIMITS.rebuilt(max_requests_in_flight=2, retry_after_s=7))

    async def inside() -> None:
        held = HeldHypernetwork()
        local = local_service(crowded, hypernetwork=held)
        waiting = [asyncio.create_task(local.http.post("/v1/tasks", json={"labels": [name]})) for name in "ab"]
        await until(lambda: len(held.calls) == 2)
        refused = await local.http.post("/v1/tasks", json={"labels": ["c"]})
        check_problem(refused, 429)
        assert refused.headers["retry-after"] == "7"
        assert (await local.http.get("/metrics")).status_code == 200  # still to be seen from outside
        held.release.set()
        assert [response.status_code for response in await asyncio.gather(*waiting)] == [200, 200]
        assert (await local.http.post("/v1/tasks", json={"labels": ["c"]})).status_code == 200
        metrics = (await local.http.get("/metrics")).text
        assert 'hyperclip_requests_shed_total{reason="overloaded"} 1.0' in metrics
        assert 'hyperclip_requests_total{method="POST",route="/v1/tasks",status="200"} 3.0' in metrics

    asyncio.run(inside())


def test_what_a_busy_deployment_refuses_counts_as_shed_too(config: ServingConfig) -> None:
    async def inside() -> None:
        held = HeldHypernetwork()
        held.release.set()
        held.fail = overloaded(LIMITS)  # as a handle says it
        local = local_service(config, hypernetwork=held)
        check_problem(await local.http.post("/v1/tasks", json={"labels": ["cat"]}), 429)
        assert 'hyperclip_requests_shed_total{reason="overloaded"} 1.0' in (await local.http.get("/metrics")).text

    asyncio.run(inside())


def test_no_answer_in_time_is_a_503(config: ServingConfig) -> None:
    async def inside() -> None:
        impatient = config.rebuilt(limits=LIMITS.rebuilt(specialize_timeout_s=0.01))
        local = local_service(impatient, hypernetwork=HeldHypernetwork())
        response = await local.http.post("/v1/tasks", json={"labels": ["cat"]})
        check_problem(response, 503)
        assert response.headers["retry-after"] == "1"

    asyncio.run(inside())


def test_a_failure_of_ours_says_nothing_of_its_inside(config: ServingConfig) -> None:
    async def inside() -> None:
        held = HeldHypernetwork()
        held.release.set()
        held.fail = RuntimeError("secret path /home/x")
        local = local_service(config, hypernetwork=held)
        response = await local.http.post("/v1/tasks", json={"labels": ["cat"]})
        check_problem(response, 500)
        assert "secret" not in response.text
        assert response.headers["x-content-type-options"] == "nosniff"

    asyncio.run(inside())
