"""The plan of a following service: from the `Rollout` deployment, at first from what it has stored."""

import asyncio

from ray.serve.handle import DeploymentHandle

from serving.config import ServingConfig
from serving.messages import Refused
from serving.model_source import ServedModel
from serving.rollout.plan import FixedPlan, Plan, PlannedVersion, PlanSource, Report, Usage
from serving.rollout.state import StateFile

ANSWER_S = 5.0
"""An exchange that takes longer is given up; the plan that is known stays."""


class RolloutPlan:
    """`PlanSource` over a deployment."""

    def __init__(self, config: ServingConfig, rollout: DeploymentHandle) -> None:
        self._config = config
        self._rollout = rollout

    def first(self) -> Plan:
        state = StateFile(self._config).read()
        if state is None:
            raise RuntimeError("the state of the rollout has gone from the task store; deploy the application again")
        champion = PlannedVersion(version=state.champion.version, state="champion", served=state.champion, info=state.info)
        return Plan(versions=(champion,))

    async def report(self, report: Report) -> Plan:
        async with asyncio.timeout(ANSWER_S):
            plan: Plan = await self._rollout.report.remote(report)
        return plan

    async def use(self, usage: Usage) -> Plan:
        async with asyncio.timeout(ANSWER_S):
            plan: Plan = await self._rollout.use.remote(usage)
        return plan

    async def require(self, version: str) -> Plan | Refused:
        async with asyncio.timeout(self._config.limits.specialize_timeout_s):  # it may have to fetch the version
            found: Plan | Refused = await self._rollout.require.remote(version)
        return found


def plan_source(config: ServingConfig, origin: ServedModel | DeploymentHandle) -> PlanSource:
    """Where a replica learns the plan: nowhere, when there is one model for ever."""
    return FixedPlan(origin) if isinstance(origin, ServedModel) else RolloutPlan(config, origin)
