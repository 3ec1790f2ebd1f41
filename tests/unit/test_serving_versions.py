"""Calls that meet a replica without their model: it is loaded while they wait, or they ask again with the plan of now."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from infra.errors import CorruptArtefactError
from serving.limits import ServingLimits
from serving.messages import HypernetworkBackend, Refused
from serving.metrics import IngressMetrics
from serving.model_source import ServedModel
from serving.problems import ProblemError
from serving.rollout.loaded_models import LoadedModel, LoadedModels
from serving.rollout.plan import Plan, PlannedVersion, Report, Usage
from serving.rollout.served_versions import NotLoadedError, ServedVersions
from serving.schemas import ModelInfo
from serving.task_record import make_record
from tests.unit.test_serving_rollout import digest_of, info_of, registered, served_model


def plan_of(*versions: str) -> Plan:
    """The first is the champion."""
    return Plan(
        versions=tuple(
            PlannedVersion(
                version=version,
                state="loaded" if place else "champion",
                served=served_model(registered(version)),
                info=info_of(version),
            )
            for place, version in enumerate(versions)
        )
    )


class FakeSource:
    """Version 1 at first, then whatever it is set to."""

    def __init__(self) -> None:
        self.now = plan_of("1")
        self.away = False
        self.reports: list[Report] = []

    def first(self) -> Plan:
        return plan_of("1")

    async def report(self, report: Report) -> Plan:
        self.reports.append(report)
        return self._answer()

    async def use(self, usage: Usage) -> Plan:
        return self._answer()

    async def require(self, version: str) -> Plan | Refused:
        if self.now.find(version) is None:
            self.now = plan_of(self.now.champion.version, version)
        return self._answer()

    def _answer(self) -> Plan:
        if self.away:
            raise ConnectionError("the rollout restarts")
        return self.now


class Loader:
    """Counts, and fails as told."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()
        self.fail: dict[str, Exception] = {}

    def __call__(self, served: ServedModel) -> LoadedModel[str]:
        self.loads[served.version] += 1
        if served.version in self.fail:
            raise self.fail[served.version]
        return LoadedModel(info_of(served.version), f"engine {served.version}")


def replica(source: FakeSource, loader: Loader) -> LoadedModels[str]:
    return LoadedModels(source, loader, part="image_encoder")


def play(scenario: Callable[[FakeSource, Loader], Awaitable[None]]) -> None:
    async def inside() -> None:
        await scenario(FakeSource(), Loader())

    asyncio.run(inside())


def test_a_call_for_a_planned_model_waits_until_it_is_loaded_once() -> None:
    async def scenario(source: FakeSource, loader: Loader) -> None:
        models = replica(source, loader)
        source.now = plan_of("2", "1")  # this replica has not heard of it
        found = await asyncio.gather(*(models.find(digest_of("2")) for _ in range(5)))
        assert [model.engine for model in found if model] == ["engine 2"] * 5
        assert loader.loads == {"1": 1, "2": 1}
        assert digest_of("2") in source.reports[-1].loading  # known before it began, should it end the process

    play(scenario)


def test_a_replica_refuses_what_does_not_load_and_goes_on() -> None:
    async def scenario(source: FakeSource, loader: Loader) -> None:
        models = replica(source, loader)
        source.now = plan_of("1", "2", "3")
        loader.fail = {"2": CorruptArtefactError("off by 0.5"), "3": MemoryError("3")}
        for version in ("2", "3", "2", "3"):
            assert await models.find(digest_of(version)) is None
        assert loader.loads == {"1": 1, "2": 1, "3": 1}
        following = asyncio.create_task(models.follow(0.01))
        while len(source.reports[-1].refused) < 2:
            await asyncio.sleep(0)
        assert source.reports[-1].refused == {digest_of("2"): "off by 0.5", digest_of("3"): "MemoryError: 3"}
        assert (await models.find(digest_of("1"))) is not None
        following.cancel()

    play(scenario)


def test_what_may_pass_is_not_refused() -> None:
    async def scenario(source: FakeSource, loader: Loader) -> None:
        models = replica(source, loader)
        source.now = plan_of("1", "2")
        loader.fail = {"2": ConnectionResetError()}
        assert await models.find(digest_of("2")) is None
        await models.find(digest_of("4"))  # exchanges
        assert source.reports[-1].refused == {}

    play(scenario)


def test_models_out_of_the_plan_are_dropped_and_a_rollout_that_is_away_changes_nothing() -> None:
    async def scenario(source: FakeSource, loader: Loader) -> None:
        models = replica(source, loader)
        source.now = plan_of("2")
        following = asyncio.create_task(models.follow(0.001))
        while {info.version for info in models.infos()} != {"2"}:
            await asyncio.sleep(0)
        source.away = True
        seen = len(source.reports)
        while len(source.reports) < seen + 3:
            await asyncio.sleep(0)
        assert await models.find(digest_of("2")) is not None
        following.cancel()

    play(scenario)


def versions_of(source: FakeSource) -> ServedVersions:
    nobody = cast("HypernetworkBackend", None)  # every version of these plans has been reported
    return ServedVersions(source, hypernetwork=nobody, limits=ServingLimits(), metrics=IngressMetrics(), num_recent_tasks=2)


def test_a_call_is_made_again_with_the_plan_of_now() -> None:
    async def scenario(source: FakeSource, loader: Loader) -> None:
        versions = versions_of(source)
        asked: list[str] = []

        async def call(model: ModelInfo) -> str:
            asked.append(model.version)
            if model.version == "1":
                source.now = plan_of("2")
                raise NotLoadedError
            return "answer"

        model, answer = await versions.ask(None, call)
        assert (model.version, answer, asked) == ("2", "answer", ["1", "2"])

    play(scenario)


def test_a_call_that_no_replica_can_answer_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.rollout.served_versions.ASK_AGAIN_S", 0)

    async def scenario(source: FakeSource, loader: Loader) -> None:
        async def call(model: ModelInfo) -> str:
            raise NotLoadedError(model.version)

        with pytest.raises(ProblemError) as told:
            await versions_of(source).ask(None, call)
        assert told.value.problem.status == 503 and "retry-after" in told.value.headers

    play(scenario)


def test_a_pinned_task_has_its_version_loaded_and_keeps_it() -> None:
    async def scenario(source: FakeSource, loader: Loader) -> None:
        versions = versions_of(source)
        pinned = make_record(tenant="t", labels=["a"], templates=None, pinned_version="7")
        unpinned = make_record(tenant="t", labels=["a"], templates=None, pinned_version=None)
        assert (await versions.of(pinned)).version == "7"
        assert (await versions.of(unpinned)).version == "1"
        source.now = plan_of("2", "7")
        await versions.refresh()
        assert (await versions.of(pinned)).version == "7"
        assert (await versions.of(unpinned)).version == "2"
        source.away = True
        await versions.refresh()
        assert (await versions.of(unpinned)).version == "2"

    play(scenario)
