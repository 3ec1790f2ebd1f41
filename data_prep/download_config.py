"""How a URL list is downloaded."""

import re
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from data_prep.fan_out import TaskConfig
from data_prep.fetch.policy import REASONS, FetchPolicy
from infra.config import StrictModel, content_hash

_WITHOUT_EFFECT = {"threads", "min_success_rate", "max_reason_share", "rounds", "round_wait_s", "tasks"}
_HTTP_STATUS = re.compile(r"http_[1-5]\d\d")
MAX_REASON_SHARE = {"dns": 0.3, "connection": 0.3, "tls": 0.3, "timeout": 0.4, "forbidden_address": 0.3}


class DownloadConfig(StrictModel):
    """How a URL list is downloaded."""

    samples_per_shard: PositiveInt = 1000
    """Rows of the list a raw shard covers, failed ones included."""
    samples_per_partition: PositiveInt = 5000
    """Rows a Ray task downloads: what is done again when a task dies."""
    threads: PositiveInt = 32
    """Requests a task has under way at once."""
    resize: PositiveInt | None = None
    """Shorter side in pixels, re-encoded as JPEG on white, never enlarged; None stores every picture as received."""
    retries: NonNegativeInt = 1
    """More attempts after a passing failure (timeout, connection, DNS, truncated, 429, 5xx), with growing waits."""
    rounds: PositiveInt = 1
    """Passes over the list: from the second on, only rows whose failure may have passed are fetched.  Raised later, a finished
    download goes on."""
    round_wait_s: float = Field(default=60.0, ge=0)
    """Between two rounds."""
    min_success_rate: float = Field(default=0.5, ge=0, le=1)
    """Below it the step fails: something is wrong with the network or the list.  Repetitions of a row do not count."""
    max_reason_share: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=lambda: dict(MAX_REASON_SHARE))
    """Reason -> share of the rows above which the step fails, once 100 rows failed for it; 1 never does.  Those with a default
    point at our own side: resolver, network, certificates, load."""
    policy: FetchPolicy = FetchPolicy()
    tasks: TaskConfig = TaskConfig()
    """How the partitions are run."""

    @field_validator("max_reason_share", mode="before")
    @classmethod
    def _beside_the_defaults(cls, given: Any) -> Any:
        return MAX_REASON_SHARE | given if isinstance(given, dict) else given

    @field_validator("max_reason_share")
    @classmethod
    def _of_reasons_that_exist(cls, shares: dict[str, float]) -> dict[str, float]:
        for reason in shares:
            if reason not in REASONS and not _HTTP_STATUS.fullmatch(reason):  # an alarm that would never sound
                raise ValueError(
                    f"no download fails with the reason {reason!r}; there are http_404 and the like, {', '.join(REASONS)}"
                )
        return shares

    def identity(self) -> dict[str, Any]:
        """What decides what a partition gives; threads and the like do not."""
        return self.model_dump(mode="json", exclude=_WITHOUT_EFFECT)

    def fingerprint(self) -> str:
        return content_hash(self.identity())
