"""The backends of the service as Serve deployments: a call goes through a handle, its failures become problems."""

import logging
from collections.abc import Mapping, Sequence
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

logger = logging.getLogger(__name__)

SERIALIZATION: Mapping[str, Any] = {"request_serialization": "pickle", "response_serialization": "pickle"}
"""Plain pickle does for what `messages.py` holds, and is several times faster than Serve's cloudpickle."""


class HypernetworkHandle:
    """`HypernetworkBackend` over a deployment."""

    def __init__(self, handle: DeploymentHandle, limits: ServingLimits) -> None:
        self._calls = _Calls(handle, limits)

    async def describe(self) -> tuple[ModelInfo, ...]:
        return await self._calls.call("describe")

    async def specialize(self, record: TaskRecord, *, digest: str) -> Specialized | Refused:
        return await self._calls.call("specialize", record, digest=digest)

    async def embed_texts(self, texts: Sequence[str], *, digest: str) -> list[Embedded] | Refused:
        return await self._calls.call("embed_texts", list(texts), digest=digest)

    async def export(self, record: TaskRecord, *, digest: str) -> bytes | Refused:
        return await self._calls.call("export", record, digest=digest)


class ImageEncoderHandle:
    """`ImageEncoderBackend` over a deployment."""

    def __init__(self, handle: DeploymentHandle, limits: ServingLimits) -> None:
        self._calls = _Calls(handle, limits)

    async def describe(self) -> tuple[ModelInfo, ...]:
        return await self._calls.call("describe")

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
        return await self._calls.call(
            "classify",
            list(images),
            task_id=task_id,
            specialization_id=specialization_id,
            digest=digest,
            parameters=parameters,
            top_k=top_k,
            tenant=tenant,
        )

    async def embed(self, images: Sequence[bytes], *, digest: str, tenant: str) -> list[Embedded | Refused] | Refused:
        return await self._calls.call("embed", list(images), digest=digest, tenant=tenant)


class _Calls:
    """Calls of one deployment: asked once more when the replica that had the call has died.

    Every call may be made twice: none changes anything but by storing what its content determines.
    """

    def __init__(self, handle: DeploymentHandle, limits: ServingLimits) -> None:
        self._handle = handle
        self._limits = limits
        self._methods: dict[str, DeploymentHandle] = {}

    async def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            try:
                return await self._method(name).remote(*args, caller=outgoing(), **kwargs)
            except RayTaskError:
                raise  # also where its cause is a RayActorError: then it is not our replica that has died
            except RayActorError as error:
                logger.warning("a replica has died during %s; asking another: %s", name, error)
                return await self._method(name).remote(*args, caller=outgoing(), **kwargs)
        except BackPressureError as error:
            raise overloaded(self._limits) from error
        except RayTaskError:
            raise  # the deployment's own failure: a bug, or a store that cannot be reached
        except (DeploymentUnavailableError, RayActorError) as error:
            retry = {"retry-after": str(self._limits.retry_after_s)}
            raise ProblemError(503, "unavailable", "a part of the service is restarting; try again", headers=retry) from error

    def _method(self, name: str) -> DeploymentHandle:
        """Made at the first call, which is inside the event loop, and kept: making one costs a good part of a call."""
        if (method := self._methods.get(name)) is None:
            method = self._methods[name] = self._handle.options(method_name=name, **SERIALIZATION)
        return method
