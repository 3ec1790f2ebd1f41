"""The backends of the service as Serve deployments: a call goes through a handle, its failures become problems."""

from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serving.limits import ServingLimits
from serving.messages import Classified, Embedded, Refused, Specialized
from serving.middleware import overloaded
from serving.problems import ProblemError
from serving.schemas import ModelInfo, Parameters
from serving.task_record import TaskRecord
from serving.tracing import outgoing


class HypernetworkHandle:
    """`HypernetworkBackend` over a deployment."""

    def __init__(self, handle: DeploymentHandle, limits: ServingLimits) -> None:
        self._handle = handle
        self._limits = limits

    async def describe(self) -> tuple[ModelInfo, ...]:
        return await _call(self._handle.describe, self._limits)

    async def specialize(self, record: TaskRecord, *, digest: str) -> Specialized | Refused:
        return await _call(self._handle.specialize, self._limits, record, digest=digest)

    async def embed_texts(self, texts: Sequence[str], *, digest: str) -> list[Embedded] | Refused:
        return await _call(self._handle.embed_texts, self._limits, list(texts), digest=digest)

    async def export(self, record: TaskRecord, *, digest: str) -> bytes | Refused:
        return await _call(self._handle.export, self._limits, record, digest=digest)


class ImageEncoderHandle:
    """`ImageEncoderBackend` over a deployment."""

    def __init__(self, handle: DeploymentHandle, limits: ServingLimits) -> None:
        self._handle = handle
        self._limits = limits

    async def describe(self) -> tuple[ModelInfo, ...]:
        return await _call(self._handle.describe, self._limits)

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
    ) -> list[Classified | Refused] | Refused:
        return await _call(
            self._handle.classify,
            self._limits,
            list(images),
            task_id=task_id,
            specialization_id=specialization_id,
            digest=digest,
            parameters=parameters,
            top_k=top_k,
            tenant=tenant,
        )

    async def embed(self, images: Sequence[bytes], *, digest: str, tenant: str) -> list[Embedded | Refused] | Refused:
        return await _call(self._handle.embed, self._limits, list(images), digest=digest, tenant=tenant)


async def _call(method: Any, limits: ServingLimits, *args: Any, **kwargs: Any) -> Any:
    try:
        return await method.remote(*args, caller=outgoing(), **kwargs)
    except BackPressureError as error:
        raise overloaded(limits) from error
    except RayTaskError:
        raise  # the deployment's own failure: a bug, or a store that cannot be reached
    except (DeploymentUnavailableError, RayActorError) as error:
        retry = {"retry-after": str(limits.retry_after_s)}
        raise ProblemError(503, "unavailable", "a part of the service is restarting; try again", headers=retry) from error
