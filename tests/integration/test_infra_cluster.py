"""A real Ray cluster on this machine, as `connected` makes it."""

import os

import pytest
import ray

from infra.cluster import WORKER_ENVIRONMENT, ClusterConfig, connected
from infra.errors import ClusterError

pytestmark = pytest.mark.integration


@ray.remote(num_cpus=1)
def environment_of_a_worker() -> dict[str, str]:
    import infra.config  # our own packages are importable there

    assert infra.config.__file__
    return dict(os.environ)


def test_a_local_cluster_lives_as_long_as_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORKER_ENVIRONMENT:
        monkeypatch.setenv(name, "will be overwritten")  # and put back at the end of the test
    assert not ray.is_initialized()
    with connected(ClusterConfig(num_cpus=2)):
        assert ray.cluster_resources()["CPU"] == 2
        with connected(ClusterConfig(num_cpus=1)):  # a connection already there is used as it is
            worker = ray.get(environment_of_a_worker.remote())
        assert ray.is_initialized()
        assert WORKER_ENVIRONMENT.items() <= worker.items()
    assert not ray.is_initialized()


def test_a_cluster_ends_with_the_error_inside_it() -> None:
    with pytest.raises(KeyError, match="inside"), connected(ClusterConfig(num_cpus=1)):
        raise KeyError("inside")
    assert not ray.is_initialized()


def test_an_address_that_is_none_is_named() -> None:
    wrong = pytest.raises(ClusterError, match=r"no Ray cluster answers at cluster\.address=nowhere: ")
    with wrong, connected(ClusterConfig(address="nowhere")):
        pass
    assert not ray.is_initialized()
