"""What passes between the rollout and the replicas: the plan of versions one way, reports the other."""

from typing import Literal, NamedTuple, Protocol

from pydantic import Field

from infra.config import StrictModel
from serving.messages import Refused
from serving.model_source import ServedModel
from serving.schemas import ModelInfo, VersionState

Part = Literal["hypernetwork", "image_encoder"]
PARTS: frozenset[Part] = frozenset(("hypernetwork", "image_encoder"))
"""The deployments that hold models."""


class TaskKey(NamedTuple):
    """Where a task is stored."""

    tenant: str
    task_id: str


class PlannedVersion(StrictModel):
    """One version and how far it is."""

    version: str
    state: VersionState
    served: ServedModel | None = None
    """None when it could not even be fetched."""
    info: ModelInfo | None = None
    """None until a replica has loaded it."""
    reason: str | None = None
    """Why it was refused."""


class Plan(StrictModel):
    """Every version there is, the champion first."""

    versions: tuple[PlannedVersion, ...]
    candidate: str | None = None
    """Digest of the model that is to be champion next."""
    warm: tuple[TaskKey, ...] = ()
    """Tasks to be specialized for it before it takes over."""

    @property
    def champion(self) -> PlannedVersion:
        return self.versions[0]

    def held(self) -> dict[str, ServedModel]:
        """What replicas are to hold, by digest."""
        return {found.served.digest: found.served for found in self.versions if found.served and found.state != "refused"}

    def find(self, version: str) -> PlannedVersion | None:
        return next((found for found in self.versions if found.version == version), None)


class Report(StrictModel):
    """What one replica of a part holds."""

    replica: str
    part: Part
    loaded: tuple[ModelInfo, ...] = ()
    loading: tuple[str, ...] = ()
    """Digests of the models that it loads at this moment."""
    refused: dict[str, str] = Field(default_factory=dict)
    """Reason by digest."""
    warmed: str | None = None
    """Digest of the model for which it has worked through the tasks of the plan."""


class Usage(StrictModel):
    """What one ingress replica was asked for since its last word."""

    tasks: tuple[TaskKey, ...] = ()
    """Unpinned tasks, the most recent last."""
    versions: tuple[str, ...] = ()
    """Versions of pinned tasks."""


class PlanSource(Protocol):
    """Where a replica learns the plan."""

    def first(self) -> Plan:
        """What to begin with; reads storage, asks nobody."""

    async def report(self, report: Report) -> Plan:
        """Tell what this replica holds; returns the plan of now."""

    async def use(self, usage: Usage) -> Plan:
        """Tell what was asked for; returns the plan of now."""

    async def require(self, version: str) -> Plan | Refused:
        """Have one more version held, for a pinned task."""


class FixedPlan:
    """One version for ever: a bundle folder, or a version by its number."""

    def __init__(self, served: ServedModel) -> None:
        self._plan = Plan(versions=(PlannedVersion(version=served.version, state="champion", served=served),))

    def first(self) -> Plan:
        return self._plan

    async def report(self, report: Report) -> Plan:  # noqa: ARG002  (nobody needs to know)
        return self._plan

    async def use(self, usage: Usage) -> Plan:  # noqa: ARG002
        return self._plan

    async def require(self, version: str) -> Plan | Refused:
        served = self._plan.champion.version
        return Refused(
            409, "version_not_served", f"the task is pinned to model version {version!r}; this service has version {served!r}"
        )
