"""The rollout without Ray and without a registry: when the champion changes, and when it must not."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from infra.errors import BadInputError, CorruptArtefactError
from infra.model_registry import ModelVersion
from infra.tracking import TrackingConfig
from serving.config import RolloutConfig
from serving.messages import Refused
from serving.model_source import ServedModel, identity
from serving.rollout.controller import KEPT_S, Rollout
from serving.rollout.plan import Part, Plan, Report, TaskKey, Usage
from serving.rollout.replicas import MIN_ALIVE_S
from serving.rollout.state import RolloutState, what_changed
from serving.schemas import ModelInfo

TASK = TaskKey("default", "a" * 52)


def registered(version: str, *, run_id: str = "run") -> ModelVersion:
    return ModelVersion(name="m", version=version, run_id=run_id, source_uri=f"models:/{version}")


def served_model(version: ModelVersion) -> ServedModel:
    return ServedModel(
        name="m",
        version=version.version,
        digest=digest_of(version.version),
        bundle_uri=None,
        tracking=TrackingConfig(uri="sqlite:////nowhere"),
        registered=version,
        cache_path=Path("cache"),
    )


def digest_of(version: str) -> str:
    return version.rjust(64, "0")


def info_of(version: str) -> ModelInfo:
    return ModelInfo(
        name="m", version=version, digest=digest_of(version), architecture="a", image_size=32, embed_dim=2, num_generated=1,
        templates=("{}",), metrics={},
    )  # fmt: skip


class FakeRegistry:
    """An alias to move; versions up to 9 exist, `broken` ones cannot be fetched."""

    def __init__(self) -> None:
        self.alias: ModelVersion | None = registered("1")
        self.broken: dict[str, Exception] = {}
        self.fetched: list[str] = []

    def target(self) -> ModelVersion | None:
        return self.alias

    def version(self, version: str) -> ModelVersion:
        if int(version) > 9:
            raise BadInputError("no such version")
        return registered(version)

    def served(self, found: ModelVersion) -> ServedModel:
        self.fetched.append(found.version)
        if found.version in self.broken:
            raise self.broken[found.version]
        return served_model(found)


class World:
    """A rollout at version 1 with replicas that hold whatever is planned, unless told otherwise."""

    def __init__(self, *, state: RolloutState | None = None, max_versions: int = 4) -> None:
        self.now = 0.0
        self.registry = FakeRegistry()
        self.saved: list[RolloutState] = []
        first = registered("1")
        self.rollout = Rollout(
            state=state or RolloutState(champion=served_model(first), info=info_of("1"), seen=identity(first)),
            save=self.saved.append,
            registry=self.registry,
            config=RolloutConfig(max_versions=max_versions),
            clock=lambda: self.now,
        )
        self.now = 100.0  # long enough to have heard of every replica

    async def report(
        self,
        replica: str,
        part: Part,
        *loaded: str,
        refused: dict[str, str] | None = None,
        loading: str | None = None,
        warmed: str | None = None,
    ) -> Plan:
        return await self.rollout.report(
            Report(
                replica=replica,
                part=part,
                loaded=tuple(info_of(version) for version in loaded),
                refused={digest_of(version): reason for version, reason in (refused or {}).items()},
                loading=() if loading is None else (digest_of(loading),),
                warmed=None if warmed is None else digest_of(warmed),
            )
        )

    async def all_hold(self, *versions: str) -> Plan:
        await self.report("h", "hypernetwork", *versions, warmed=versions[-1])
        await self.report("i1", "image_encoder", *versions)
        return await self.report("i2", "image_encoder", *versions)

    async def promote(self, version: str) -> None:
        self.registry.alias = registered(version)
        await self.rollout.poll()

    @property
    def champion(self) -> str:
        return self.rollout.plan().champion.version

    def states(self) -> dict[str, str]:
        return {found.version: found.state for found in self.rollout.plan().versions}


def play(scenario: Callable[[World], Awaitable[None]], world: World | None = None) -> None:
    asyncio.run(scenario(world or World()))  # type: ignore[arg-type]


def test_the_champion_changes_when_every_replica_holds_the_next_one() -> None:
    async def scenario(world: World) -> None:
        await world.all_hold("1")
        await world.promote("2")
        assert world.states() == {"1": "champion", "2": "loading"}
        await world.report("h", "hypernetwork", "1", "2")
        plan = await world.report("i1", "image_encoder", "1", "2")
        assert plan.champion.version == "1"  # the second encoder replica has not got it yet
        plan = await world.report("i2", "image_encoder", "1", "2")
        assert plan.champion.version == "2" and plan.champion.info == info_of("2")
        assert world.states() == {"2": "champion", "1": "loaded"}  # the one before stays, for calls on their way
        assert world.saved[-1].champion.version == "2"

    play(scenario)


def test_one_replica_that_refuses_is_enough_and_nothing_is_tried_twice() -> None:
    async def scenario(world: World) -> None:
        await world.all_hold("1")
        await world.promote("2")
        await world.report("h", "hypernetwork", "1", "2")
        await world.report("i1", "image_encoder", "1", refused={"2": "golden features differ"})
        plan = await world.report("i2", "image_encoder", "1", "2")
        assert plan.champion.version == "1" and digest_of("2") not in plan.held()
        (refused,) = [found for found in plan.versions if found.state == "refused"]
        assert (refused.version, refused.reason) == ("2", "golden features differ")
        await world.rollout.poll()
        assert world.registry.fetched == ["2"]  # still the alias's target, and not tried again
        assert isinstance(await world.rollout.require("2"), Refused)
        assert world.saved[-1].refused[0].version == "2"

        again = World(state=world.saved[-1])
        again.registry.alias = registered("2")
        await again.rollout.poll()
        assert again.registry.fetched == [] and again.champion == "1"  # nor after a restart

    play(scenario)


def test_a_refused_version_is_tried_again_when_somebody_decides_anew() -> None:
    async def scenario(world: World) -> None:
        await world.all_hold("1")
        world.registry.broken["2"] = CorruptArtefactError("model.safetensors missing")
        await world.promote("2")
        assert world.states() == {"1": "champion", "2": "refused"}
        await world.promote("1")
        del world.registry.broken["2"]
        await world.promote("2")
        await world.all_hold("1", "2")
        assert world.champion == "2"
        told = [line for before, after in itertools.pairwise(world.saved) for line in what_changed(before, after)]
        assert told == ["Version 2 is served now, after 1."]
        assert what_changed(world.saved[-1], world.saved[0]) == [
            "Version 2 is refused, and version 1 goes on: model.safetensors missing",
            "Version 1 is served now, after 2.",
        ]

    play(scenario)


def test_a_registry_that_does_not_answer_refuses_nothing() -> None:
    async def scenario(world: World) -> None:
        await world.all_hold("1")
        world.registry.broken["2"] = OSError("connection reset")
        with pytest.raises(OSError, match="reset"):
            await world.promote("2")
        assert world.states() == {"1": "champion"}
        del world.registry.broken["2"]
        await world.rollout.poll()
        await world.all_hold("1", "2")
        assert world.champion == "2"

    play(scenario)


def test_an_alias_that_points_nowhere_changes_nothing() -> None:
    async def scenario(world: World) -> None:
        world.registry.alias = None
        await world.rollout.poll()
        assert world.champion == "1"

    play(scenario)


def test_recent_tasks_are_specialized_before_the_switch_but_not_waited_for_for_ever() -> None:
    async def scenario(world: World) -> None:
        await world.all_hold("1")
        await world.rollout.use(Usage(tasks=(TASK,)))
        await world.promote("2")
        await world.report("h", "hypernetwork", "1", "2")
        await world.report("i1", "image_encoder", "1", "2")
        plan = await world.report("i2", "image_encoder", "1", "2")
        assert plan.champion.version == "1" and plan.warm == (TASK,) and plan.candidate == digest_of("2")
        plan = await world.report("h", "hypernetwork", "1", "2", warmed="2")
        assert plan.champion.version == "2" and plan.candidate is None

        await world.promote("3")
        for _ in range(35):
            world.now += 2
            await world.report("i1", "image_encoder", "2", "3")
            await world.report("i2", "image_encoder", "2", "3")
            await world.report("h", "hypernetwork", "2", "3")
        assert world.champion == "3"  # after `warm_timeout_s`

    play(scenario)


def test_replicas_that_are_gone_are_not_waited_for() -> None:
    async def scenario(world: World) -> None:
        await world.all_hold("1")
        await world.promote("2")
        world.now += MIN_ALIVE_S + 10  # i2 was scaled down
        await world.report("h", "hypernetwork", "1", "2")
        await world.report("i1", "image_encoder", "1", "2")
        assert world.champion == "2"

    play(scenario)


def test_nothing_switches_before_every_replica_can_have_reported() -> None:
    async def scenario(world: World) -> None:
        world.now = 0.5
        await world.promote("2")
        await world.all_hold("1", "2")
        assert world.champion == "1"
        world.now = 20
        await world.all_hold("1", "2")
        assert world.champion == "2"

    play(scenario)


def test_a_version_that_ends_replicas_is_blamed() -> None:
    async def scenario(world: World) -> None:
        await world.all_hold("1")
        await world.promote("2")
        for replica in ("i1", "i1-restarted"):
            await world.report(replica, "image_encoder", "1", loading="2")
            world.now += MIN_ALIVE_S + 10
            await world.rollout.poll()
        assert world.states() == {"1": "champion", "2": "refused"}

    play(scenario)


def test_a_newer_decision_takes_the_place_of_one_under_way() -> None:
    async def scenario(world: World) -> None:
        await world.all_hold("1")
        await world.promote("2")
        await world.promote("3")
        assert world.states() == {"1": "champion", "3": "loading"}
        await world.promote("1")
        assert world.states() == {"1": "champion"}

    play(scenario)


def test_another_registry_has_its_own_version_1() -> None:
    async def scenario(world: World) -> None:
        await world.all_hold("1")
        world.registry.alias = registered("1", run_id="another run")
        await world.rollout.poll()
        await world.all_hold("1")
        champion = world.rollout.state.champion.registered
        assert champion is not None and champion.run_id == "another run"

    play(scenario)


def test_pinned_versions_are_held_within_the_bound_and_the_idle_make_room() -> None:
    async def scenario(world: World) -> None:
        for version in ("2", "3", "4"):
            assert isinstance(await world.rollout.require(version), Plan)
            world.now += 1
        full = await world.rollout.require("5")
        assert isinstance(full, Refused) and full.status == 503
        world.now += KEPT_S
        await world.rollout.use(Usage(versions=("2",)))
        assert isinstance(await world.rollout.require("5"), Plan)
        assert set(world.states()) == {"1", "2", "4", "5"}  # 3 was idle the longest
        for version, status in (("99", 409), ("champion", 409)):
            refused = await world.rollout.require(version)
            assert isinstance(refused, Refused) and refused.status == status

    play(scenario)
