"""Streaming over Ray Data: what functions return comes back, and what goes wrong is told."""

import os
from collections.abc import Iterator

import pytest

from data_prep.curation.ray_stream import TaskFailedError, stream
from data_prep.fan_out import TaskConfig, WorkerDiedError
from infra.cluster import ClusterConfig, connected

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with connected(ClusterConfig(num_cpus=2)):
        yield


def squared(number: int, text: str | None) -> tuple[int, str | None]:
    if text == "store":
        raise OSError("the store is away")
    if text == "die":
        os._exit(1)
    return number * number, text


def test_every_result_comes_back_with_its_values() -> None:
    found = sorted(stream(squared, [(number, None) for number in range(20)], TaskConfig(max_in_flight=4)))
    assert found == [(number * number, None) for number in range(20)]
    assert list(stream(squared, [], TaskConfig())) == []


def test_storage_that_fails_again_and_again_is_told() -> None:
    with pytest.raises(TaskFailedError, match="task of squared failed: OSError: the store is away"):
        list(stream(squared, [(1, None), (2, "store")], TaskConfig(max_retries=1)))


def test_a_worker_that_dies_again_and_again_is_told() -> None:
    with pytest.raises(WorkerDiedError, match="task of squared was lost 2 times"):
        list(stream(squared, [(1, "die")], TaskConfig(max_retries=1)))
