"""Calls between deployments when a replica dies: a handle stands in, as it takes a cluster to kill one (chaos does that)."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from ray import ActorID
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.handle import DeploymentHandle

from serving.deployments.handles import ImageEncoderHandle
from serving.limits import ServingLimits
from serving.problems import ProblemError

UNAVAILABLE = ActorUnavailableError("gone", ActorID.nil().binary())


class Handle:
    """Gives what it was told to, one after the other; counts how often a method was asked for."""

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = list(outcomes)
        self.made = self.called = 0

    def options(self, **_: Any) -> "Handle":
        self.made += 1
        return self

    async def remote(self, *_: Any, **__: Any) -> Any:
        self.called += 1
        if isinstance(outcome := self._outcomes.pop(0), BaseException):
            raise outcome
        return outcome


def embed(handle: Handle) -> Any:
    backend = ImageEncoderHandle(cast(DeploymentHandle, handle), ServingLimits())
    return asyncio.run(cast(Any, backend.embed([b"picture"], digest="0", tenant="default")))


@pytest.mark.parametrize("death", [ActorDiedError, lambda: UNAVAILABLE])
def test_a_call_whose_replica_died_goes_to_another(death: Callable[[], Exception]) -> None:
    handle = Handle(death(), ["answer"])
    assert embed(handle) == ["answer"]
    assert (handle.called, handle.made) == (2, 1)


def test_two_deaths_are_told_as_a_restart() -> None:
    with pytest.raises(ProblemError) as caught:
        embed(Handle(ActorDiedError(), ActorDiedError(), ["never"]))
    assert caught.value.problem.status == 503
    assert caught.value.headers["retry-after"]


def test_a_failure_of_the_deployment_is_not_tried_again() -> None:
    handle = Handle(RayTaskError("embed", "", ActorDiedError()), ["never"])
    with pytest.raises(RayTaskError):
        embed(handle)
    assert handle.called == 1
