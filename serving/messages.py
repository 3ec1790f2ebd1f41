"""What travels between the deployments: plain values.

A mistake of the caller is a value too (`Refused`): one bad picture then fails alone, and no exception has to survive pickling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.schemas import ImageTimings, ModelInfo, Parameters, Prediction
from serving.task_record import TaskRecord


@dataclass(frozen=True)
class Refused:
    """Why something was not done, and the HTTP status that says so."""

    status: int
    reason: str
    """A stable word."""
    detail: str


@dataclass(frozen=True)
class Specialized:
    """The hypernetwork made an encoder and stored it."""

    specialization_id: str
    milliseconds: float


@dataclass(frozen=True)
class Classified:
    """One picture under one task."""

    predictions: tuple[Prediction, ...]
    batch_size: int
    timings: ImageTimings


@dataclass(frozen=True)
class Embedded:
    """One picture or text."""

    features: np.ndarray
    """(D,) float32."""


NOT_SPECIALIZED = Refused(409, "not_specialized", "no encoder was made for this task by this model")
"""Between deployments only: the ingress has it made and asks again."""
NOT_LOADED = Refused(503, "model_not_loaded", "this part of the service does not hold that model version yet; try again")
"""Between deployments only: the ingress asks another replica."""
OVERLOADED = Refused(429, "overloaded", "more pictures than the service can take; wait and try again")
ENDING = Refused(503, "unavailable", "a part of the service is ending; try again")


class HypernetworkBackend(Protocol):
    """Rare and heavy: from names to encoders.  Each call names its model by the digest of the bundle."""

    async def describe(self) -> tuple[ModelInfo, ...]: ...

    async def specialize(self, record: TaskRecord, *, digest: str) -> Specialized | Refused: ...

    async def embed_texts(self, texts: Sequence[str], *, digest: str) -> list[Embedded] | Refused: ...

    async def export(self, record: TaskRecord, *, digest: str) -> bytes | Refused: ...


class ImageEncoderBackend(Protocol):
    """Hot: from pictures to scores and features.  Each call names its model by the digest of the bundle,
    and its tenant, with whom others take turns."""

    async def describe(self) -> tuple[ModelInfo, ...]: ...

    async def classify(
        self,
        images: Sequence[bytes],
        *,
        task_id: str,
        specialization_id: str,
        digest: str,
        parameters: Parameters,
        top_k: int,
        tenant: str,
    ) -> list[Classified | Refused] | Refused: ...

    async def embed(self, images: Sequence[bytes], *, digest: str, tenant: str) -> list[Embedded | Refused] | Refused: ...
