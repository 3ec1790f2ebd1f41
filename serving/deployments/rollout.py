"""The deployment that follows the registry.  It holds no model, and when it dies only the next rollout waits."""

import asyncio
import logging

from serving.config import ServingConfig
from serving.messages import Refused
from serving.rollout.controller import Rollout as Controller
from serving.rollout.plan import Plan, Report, Usage
from serving.rollout.registry import FollowedRegistry
from serving.rollout.state import StateFile

logger = logging.getLogger(__name__)


class Rollout:
    """A thin shell around `serving.rollout.controller`: one replica, which looks at the alias now and then."""

    def __init__(self, config: ServingConfig) -> None:
        file = StateFile(config)
        state = file.read()
        if state is None:
            raise RuntimeError("the state of the rollout has gone from the task store; deploy the application again")
        self._controller = Controller(state=state, save=file.write, registry=FollowedRegistry(config), config=config.rollout)
        self._interval_s = config.rollout.poll_interval_s
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def report(self, report: Report) -> Plan:
        return await self._controller.report(report)

    async def use(self, usage: Usage) -> Plan:
        return await self._controller.use(usage)

    async def require(self, version: str) -> Plan | Refused:
        return await self._controller.require(version)

    async def _follow(self) -> None:
        while True:
            try:
                await self._controller.poll()
            except Exception as error:  # a registry that does not answer: the champion goes on, the next look comes
                logger.warning("the registry cannot be asked: %r", error)
            await asyncio.sleep(self._interval_s)
