"""The rollout itself, without Ray: which versions there are, which of them is the champion, and when that changes.

A new target of the alias is fetched, loaded by every replica beside what it has, and becomes champion when all of them hold it
and recent tasks have been specialized for it.  One replica that refuses it is enough: it never takes traffic.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from infra.errors import BadInputError, CorruptArtefactError
from infra.model_registry import ModelVersion
from serving.config import RolloutConfig
from serving.messages import Refused
from serving.model_source import ServedModel, identity
from serving.rollout.plan import Plan, PlannedVersion, Report, TaskKey, Usage
from serving.rollout.replicas import Replicas, holds
from serving.rollout.state import MAX_REFUSED, RefusedVersion, RolloutState
from serving.schemas import ModelInfo
from serving.single_flight import SingleFlight

logger = logging.getLogger(__name__)

KEPT_S = 10.0
"""A version used that recently makes no room for another: calls with it may be on their way."""
MAX_DEATHS = 2
"""Replicas that may vanish while they load a version, before it is blamed for that."""


TOO_MANY = Refused(503, "too_many_versions", "as many model versions as the service may hold are in use; try again")


class Registry(Protocol):
    """The registry as the rollout needs it; its calls block."""

    def target(self) -> ModelVersion | None:
        """The version that the alias points to."""

    def version(self, version: str) -> ModelVersion:
        """Raises BadInputError when there is none of that number."""

    def served(self, registered: ModelVersion) -> ServedModel:
        """Fetch a version.  Raises CorruptArtefactError or BadInputError when it can never be served."""


class Rollout:
    """For one event loop.  `poll` is to be called again and again; the other calls come from the replicas."""

    def __init__(
        self,
        *,
        state: RolloutState,
        save: Callable[[RolloutState], None],
        registry: Registry,
        config: RolloutConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = state
        self._save, self._registry, self._config, self._clock = save, registry, config, clock
        # by identity, not by number: a registry that was made anew has other versions under the same numbers
        self._held = {_identity(state.champion): state.champion}
        self._used = {_identity(state.champion): clock()}
        self._candidate: ServedModel | None = None
        self._warm: tuple[TaskKey, ...] = ()
        self._all_loaded_at: float | None = None
        self._replicas = Replicas(config, clock)
        self._infos: dict[str, ModelInfo] = {state.info.digest: state.info}
        self._tasks: OrderedDict[TaskKey, None] = OrderedDict()
        self._flights = SingleFlight()
        self._unsaved = False
        self._saving = asyncio.Lock()

    # ---- what replicas call --------------------------------------------------------------------------------------------

    async def report(self, report: Report) -> Plan:
        """Note what a replica holds, and move on when it was the last one waited for."""
        self._replicas.note(report)
        self._infos.update({info.digest: info for info in report.loaded})
        await self._advance()
        return self.plan()

    async def use(self, usage: Usage) -> Plan:
        """Note what an ingress replica was asked for."""
        for task in usage.tasks:
            self._tasks[task] = None
            self._tasks.move_to_end(task)
        while len(self._tasks) > self._config.warm_tasks:
            self._tasks.popitem(last=False)
        for version in usage.versions:
            self._touch(version)
        return self.plan()

    async def require(self, version: str) -> Plan | Refused:
        """Have one more version held, for a pinned task."""
        if (refused := self._refusal(version)) is not None:
            return refused
        if not self._touch(version) and (refused := await self._flights.do(version, lambda: self._add(version))):
            return refused
        return self.plan()

    def plan(self) -> Plan:
        """What is to be held, the champion first, and what was refused."""
        rest = [served for served in self._held.values() if served != self.state.champion]
        refused = [PlannedVersion(version=found.version, state="refused", reason=found.reason) for found in self.state.refused]
        return Plan(
            versions=(self._planned(self.state.champion), *map(self._planned, rest), *refused),
            candidate=self._candidate and self._candidate.digest,
            warm=self._warm,
        )

    # ---- following the alias -------------------------------------------------------------------------------------------

    async def poll(self) -> None:
        """Look at the alias once, and begin, or give up, what follows from it."""
        target = await asyncio.to_thread(self._registry.target)
        await self._advance()  # also when no replica reports any more
        if target is None:  # nobody is champion: the one that was goes on
            return
        key = identity(target)
        if key != self.state.seen:  # somebody decided anew, so what was refused may be tried again
            refused = tuple(found for found in self.state.refused if found.identity != key)
            self.state = self.state.rebuilt(seen=key, refused=refused)
            self._replicas.deaths.clear()
            self._unsaved = True
        if self._candidate is not None and _identity(self._candidate) != key:
            self._drop_candidate()
        if key != _identity(self.state.champion) and self._candidate is None and not self._is_refused(key):
            await self._begin(target)
        await self._save_state()

    async def _begin(self, target: ModelVersion) -> None:
        try:
            served = await asyncio.to_thread(self._registry.served, target)
        except (CorruptArtefactError, BadInputError) as error:
            self._refuse(target, str(error))
            return
        if identity(target) not in self._held and len(self._held) >= self._config.max_versions:
            self._forget(self._evictable(kept_s=0)[0])
        self._hold(served)
        self._candidate, self._warm, self._all_loaded_at = served, tuple(reversed(self._tasks)), None
        logger.warning("version %s is being rolled out in the place of %s", served.version, self.state.champion.version)

    async def _advance(self) -> None:
        """Refuse what a replica refuses, and switch when every replica is ready."""
        live = self._replicas.live()
        for served in list(self._held.values()):
            reasons = [report.refused[served.digest] for report in live if served.digest in report.refused]
            if self._replicas.deaths[served.digest] >= MAX_DEATHS and not any(holds(report, served) for report in live):
                reasons.append(f"{MAX_DEATHS} replicas ended while they loaded it")
            if reasons and served != self.state.champion:
                assert served.registered is not None
                self._refuse(served.registered, reasons[0])
        candidate = self._candidate
        if candidate is None or not self._replicas.all_hold(candidate, live):
            self._all_loaded_at = None
            return
        if self._all_loaded_at is None:
            self._all_loaded_at = self._clock()
        warmed = all(report.warmed == candidate.digest for report in live if report.part == "hypernetwork")
        if not self._warm or warmed or self._clock() - self._all_loaded_at > self._config.warm_timeout_s:
            await self._switch(candidate)

    async def _switch(self, served: ServedModel) -> None:
        previous = self.state.champion
        self.state = self.state.rebuilt(champion=served, info=self._info(served))
        self._used[_identity(previous)] = self._clock()  # calls with it may be on their way
        self._candidate, self._warm = None, ()
        self._unsaved = True
        logger.warning("version %s is champion now, after %s", served.version, previous.version)
        await self._save_state()

    async def _add(self, version: str) -> Refused | None:
        """Fetch a version that a pinned task needs; None when it is held now."""
        if len(self._held) >= self._config.max_versions and not self._evictable(kept_s=KEPT_S):
            return TOO_MANY
        try:
            if not version.isdecimal():
                raise BadInputError(f"{version!r} is not the number of a model version")
            registered = await asyncio.to_thread(self._registry.version, version)
        except BadInputError as error:
            return Refused(409, "version_not_served", f"the task is pinned to model version {version!r}: {error}")
        except Exception as error:
            return _unreachable(version, error)
        try:
            served = await asyncio.to_thread(self._registry.served, registered)
        except (CorruptArtefactError, BadInputError) as error:
            self._refuse(registered, str(error))
            await self._save_state()
            return self._refusal(version)
        except Exception as error:
            return _unreachable(version, error)
        if len(self._held) >= self._config.max_versions:
            if not (old := self._evictable(kept_s=KEPT_S)):
                return TOO_MANY
            self._forget(old[0])
        self._hold(served)
        return None

    # ---- parts ---------------------------------------------------------------------------------------------------------

    def _planned(self, served: ServedModel) -> PlannedVersion:
        info = self._infos.get(served.digest)
        state = "champion" if served == self.state.champion else "loading" if info is None else "loaded"
        return PlannedVersion(
            version=served.version, state=state, served=served, info=None if info is None else self._info(served)
        )

    def _info(self, served: ServedModel) -> ModelInfo:
        return self._infos[served.digest].rebuilt(name=served.name, version=served.version)

    def _refuse(self, registered: ModelVersion, reason: str) -> None:
        logger.error("version %s is refused: %s", registered.version, reason)
        refused = RefusedVersion(version=registered.version, identity=identity(registered), reason=reason)
        others = tuple(found for found in self.state.refused if found.version != refused.version)  # one reason a number
        self.state = self.state.rebuilt(refused=(*others, refused)[-MAX_REFUSED:])
        self._unsaved = True
        if self._candidate is not None and _identity(self._candidate) == identity(registered):
            self._drop_candidate()
        self._forget(identity(registered))

    def _refusal(self, version: str) -> Refused | None:
        for found in self.state.refused:
            if found.version == version:
                return Refused(409, "version_refused", f"model version {version!r} cannot be served: {found.reason}")
        return None

    def _is_refused(self, key: str) -> bool:
        return any(found.identity == key for found in self.state.refused)

    def _drop_candidate(self) -> None:
        if self._candidate is not None:
            self._forget(_identity(self._candidate))
        self._candidate, self._warm = None, ()

    def _hold(self, served: ServedModel) -> None:
        self._held[_identity(served)] = served
        self._used[_identity(served)] = self._clock()

    def _touch(self, version: str) -> bool:
        """Whether a version is held; it counts as used now."""
        keys = [key for key, served in self._held.items() if served.version == version]
        self._used |= dict.fromkeys(keys, self._clock())
        return bool(keys)

    def _evictable(self, *, kept_s: float) -> list[str]:
        """Held models that may make room, the one used longest ago first."""
        idle = [
            key
            for key, served in self._held.items()
            if served not in (self.state.champion, self._candidate) and self._clock() - self._used[key] >= kept_s
        ]
        return sorted(idle, key=lambda key: self._used[key])

    def _forget(self, key: str) -> None:
        if key == _identity(self.state.champion) or key not in self._held:
            return
        del self._used[key]
        served = self._held.pop(key)
        if served.digest not in {other.digest for other in self._held.values()}:
            self._infos.pop(served.digest, None)

    async def _save_state(self) -> None:
        async with self._saving:
            if not self._unsaved:
                return
            self._unsaved = False
            try:
                await asyncio.to_thread(self._save, self.state)
            except Exception:  # the store may be away for a while: served is served, and the next poll tries again
                self._unsaved = True
                logger.exception("the state of the rollout cannot be stored")


def _unreachable(version: str, error: Exception) -> Refused:
    logger.warning("version %s cannot be fetched: %r", version, error)
    return Refused(503, "version_unavailable", f"model version {version!r} cannot be fetched now; try again")


def _identity(served: ServedModel) -> str:
    assert served.registered is not None
    return identity(served.registered)
