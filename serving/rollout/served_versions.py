"""Which model a call uses: the champion, or the version that its task is pinned to.  One per ingress replica."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serving.limits import ServingLimits
from serving.messages import NOT_LOADED, HypernetworkBackend, Refused
from serving.metrics import IngressMetrics
from serving.problems import ProblemError
from serving.rollout.plan import Plan, PlanSource, TaskKey, Usage
from serving.schemas import ModelInfo, ModelList, VersionStatus
from serving.task_record import TaskRecord

logger = logging.getLogger(__name__)

ASK_AGAIN_S = 0.2
"""While a pinned version is being loaded."""
MAX_ASKED = 5
"""How often a call looks for a replica that holds its model."""

Answer = TypeVar("Answer")


class NotLoadedError(Exception):
    """A replica does not hold the model it was asked for, and cannot load it."""


class ServedVersions:
    """For one event loop.  The plan is refreshed by `follow`, and by `refresh` when a call shows that it is old."""

    def __init__(
        self,
        source: PlanSource,
        *,
        hypernetwork: HypernetworkBackend,
        limits: ServingLimits,
        metrics: IngressMetrics,
        num_recent_tasks: int,
    ) -> None:
        self._source, self._hypernetwork, self._limits = source, hypernetwork, limits
        self._num_recent = num_recent_tasks
        self._metrics = metrics
        self._plan = source.first()
        self._tell()
        self._recent: OrderedDict[TaskKey, None] = OrderedDict()
        self._pinned: set[str] = set()

    @property
    def plan(self) -> Plan:
        return self._plan

    async def champion(self) -> ModelInfo:
        """The model of calls that name no task, and of unpinned tasks."""
        if (info := self._plan.champion.info) is None:  # one model for ever, which nobody reports
            info = (await self._hypernetwork.describe())[0]
            self._plan = Plan(versions=(self._plan.champion.rebuilt(info=info),))
        return info

    async def of(self, record: TaskRecord) -> ModelInfo:
        """The model of a task, loaded for it if it is pinned to a version that is not held.

        Raises:
            ProblemError: 409 there is no such version, or it was refused; 503 it cannot be had now.
        """
        if record.pinned_version is None:
            key = TaskKey(record.tenant, record.task_id)
            self._recent[key] = None
            self._recent.move_to_end(key)
            while len(self._recent) > self._num_recent:
                self._recent.popitem(last=False)
            return await self.champion()
        self._pinned.add(record.pinned_version)
        champion = await self.champion()
        if champion.version == record.pinned_version:
            return champion
        return self._info(record.pinned_version) or await self._pinned_model(record.pinned_version)

    async def ask(self, record: TaskRecord | None, call: Callable[[ModelInfo], Awaitable[Answer]]) -> tuple[ModelInfo, Answer]:
        """Make a call with the model of a task, or with the champion; returns that model and the answer.

        A replica that does not hold the model is asked to load it and the call waits for that.  When it says that it cannot
        (`NotLoadedError`), the plan has moved on or that replica is not well: the call is made again, with the plan of now.
        """
        for attempt in range(MAX_ASKED):
            model = await (self.champion() if record is None else self.of(record))
            try:
                return model, await call(model)
            except NotLoadedError:
                await asyncio.sleep(ASK_AGAIN_S * attempt)
                await self.refresh()
        raise self._problem(NOT_LOADED)

    async def refresh(self) -> None:
        """Ask for the plan of now; the one that is known stays when nobody answers."""
        usage = Usage(tasks=tuple(self._recent), versions=tuple(self._pinned))
        self._recent.clear()
        self._pinned.clear()
        try:
            self._plan = await self._source.use(usage)
            self._tell()
        except Exception as error:  # the rollout restarts: what is served goes on being served
            logger.info("no plan from the rollout: %r", error)

    async def follow(self, interval_s: float) -> None:
        """Keep the plan fresh until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(interval_s)

    async def listed(self) -> ModelList:
        """What is told about all versions."""
        champion = await self.champion()
        usable = [found.info for found in self._plan.versions if found.info is not None and found.state == "loaded"]
        versions = tuple(
            VersionStatus(
                version=found.version,
                state=found.state,
                digest=None if found.served is None else found.served.digest,
                reason=found.reason,
            )
            for found in self._plan.versions
        )
        return ModelList(models=(champion, *usable), versions=versions)

    async def _pinned_model(self, version: str) -> ModelInfo:
        try:
            async with asyncio.timeout(self._limits.specialize_timeout_s):
                while True:
                    found = await self._require(version)
                    if isinstance(found, Refused):
                        raise self._problem(found)
                    self._plan = found
                    if (info := self._info(version)) is not None:
                        return info
                    await asyncio.sleep(ASK_AGAIN_S)
        except TimeoutError as error:
            raise self._problem(
                Refused(503, "timeout", f"model version {version!r} is still being loaded; try again")
            ) from error

    async def _require(self, version: str) -> Plan | Refused:
        try:
            return await self._source.require(version)
        except TimeoutError:
            raise
        except Exception as error:  # the rollout restarts
            logger.info("no plan from the rollout: %r", error)
            return Refused(503, "version_unavailable", f"model version {version!r} cannot be fetched now; try again")

    def _tell(self) -> None:
        """The first of a number counts: another registry's version of the same number may be on its way."""
        self._metrics.versions({found.version: found.state for found in reversed(self._plan.versions)})

    def _info(self, version: str) -> ModelInfo | None:
        found = self._plan.find(version)
        return None if found is None or found.state == "refused" else found.info

    def _problem(self, refused: Refused) -> ProblemError:
        headers = {"retry-after": str(self._limits.retry_after_s)} if refused.status == 503 else None
        return ProblemError(refused.status, refused.reason, refused.detail, headers=headers)
