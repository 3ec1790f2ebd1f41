"""Configuration of the service."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from infra.config import StrictModel
from infra.model_registry import CHAMPION
from infra.tracking import TrackingConfig
from serving.limits import ServingLimits
from serving.logs import LogLevel
from serving.tenants import TenantConfig, checked_tenants


class DeploymentScale(StrictModel):
    """How many replicas of one deployment, and what each of them gets."""

    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveFloat = 8
    """Requests per replica that the autoscaler aims at."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that one replica takes at once; more wait in the caller."""
    max_queued_requests: PositiveInt = 256
    """Requests that may wait in one caller; more are refused with 429."""
    num_cpus: NonNegativeFloat = 1
    num_gpus: NonNegativeFloat = 0
    """Above zero, the model runs on `cuda`."""
    num_threads: PositiveInt = 1
    """Of torch, in each replica."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas={self.max_replicas} is less than min_replicas={self.min_replicas}")
        return self

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"


class BatchingConfig(StrictModel):
    """How an encoder replica gathers pictures, of any tasks, into one forward pass."""

    max_batch_size: PositiveInt = 16
    batch_wait_timeout_s: NonNegativeFloat = 0.002
    """How long an idle encoder waits for others to join the first picture of a batch."""
    max_waiting_images: PositiveInt = 512
    """Decoded pictures that may wait in one replica; calls that find no room are refused with 429."""
    decode_threads: PositiveInt = 2
    """Pictures decoded at the same time in one replica."""
    resident_bytes: PositiveInt = 256 * 2**20
    """Of the parameters and labels of recent tasks, which a replica keeps ready."""


class RolloutConfig(StrictModel):
    """How the service follows the registry's alias; of no effect when `alias` is a number, or with `bundle_uri`."""

    poll_interval_s: PositiveFloat = 5
    """Between two looks at the alias."""
    sync_interval_s: PositiveFloat = 1
    """Between two exchanges of each replica with the rollout: how far two replicas may be apart."""
    max_versions: Annotated[int, Field(ge=3)] = 4
    """Models that each replica holds at most: the champion, the one before, the next, and those of pinned tasks."""
    warm_tasks: NonNegativeInt = 100
    """Recent tasks that are specialized for the next champion before it takes over."""
    warm_timeout_s: PositiveFloat = 60
    """How long it waits for them; those left are specialized by their next call."""


class ServiceSettings(StrictModel):
    """What is allowed and how large the service is, whatever it serves."""

    host: str = "127.0.0.1"
    port: Annotated[NonNegativeInt, Field(le=65535)] = 8000
    tenants: tuple[TenantConfig, ...] = ()
    """Who may call, each with its own tasks; without any, those of the environment variable HYPERCLIP_TENANTS."""
    allow_anonymous: bool = False
    """Serve without keys, to whoever reaches the port; on loopback this machine's own programs are served anyway."""
    log_level: LogLevel = "info"
    """Of the replicas' own logs; at info there is one line a request."""
    limits: ServingLimits = ServingLimits()
    batching: BatchingConfig = BatchingConfig()
    ingress: DeploymentScale = DeploymentScale(num_cpus=0.5, max_ongoing_requests=256, target_ongoing_requests=64)
    hypernetwork: DeploymentScale = DeploymentScale(num_cpus=0.5, max_ongoing_requests=8, target_ongoing_requests=2)
    image_encoder: DeploymentScale = DeploymentScale(num_cpus=0.5, target_ongoing_requests=16)
    rollout: RolloutConfig = RolloutConfig()
    text_feature_bytes: PositiveInt = 256 * 2**20
    """Label features that a replica of the hypernetwork keeps, so that a label seen before costs nothing."""
    task_ttl_s: Annotated[float, Field(ge=60)] | None = None
    """Tasks that nobody has used for so long are removed; none when absent."""
    task_cache_s: NonNegativeFloat = 30
    """How long an ingress replica remembers a task: a deletion may take as long to be seen by the others."""

    @field_validator("tenants")
    @classmethod
    def _check_tenants(cls, tenants: tuple[TenantConfig, ...]) -> tuple[TenantConfig, ...]:
        return checked_tenants(tenants)

    @model_validator(mode="after")
    def _check_room(self) -> Self:
        if self.limits.max_images > self.batching.max_waiting_images:
            raise ValueError(
                f"limits.max_images={self.limits.max_images} pictures of one call would not fit into "
                f"batching.max_waiting_images={self.batching.max_waiting_images}; raise the latter"
            )
        return self


class ServingConfig(ServiceSettings):
    """The whole service: which model, where tasks are kept, and its settings."""

    tracking: TrackingConfig | None = None
    """The registry that holds the model; needed unless `bundle_uri` is given."""
    model_name: str = "hyperclip"
    alias: str = CHAMPION
    """An alias, which the service follows, or the number of a version, with which it stays."""
    bundle_uri: str | None = None
    """Serve this bundle folder instead of a registered model."""
    task_store_uri: str
    """Folder or object store for tasks; every replica must reach it."""
    cache_path: Path = Path("~/.cache/hyperclip/models")
    """Where each machine keeps the models it has fetched."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.tracking is None) == (self.bundle_uri is None):
            raise ValueError("give either tracking (a model registry) or bundle_uri (a bundle folder)")
        return self

    @property
    def local_only(self) -> bool:
        """Whether nobody may call but this machine's own programs: there are no keys, and nothing that does without."""
        return not self.tenants and not self.allow_anonymous

    @property
    def follows(self) -> bool:
        """Whether the served version may change while the service runs."""
        return self.tracking is not None and not self.alias.isdigit()
