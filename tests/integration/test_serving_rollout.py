"""The service follows a real registry: promoted, rolled back, refused, pinned, and started again, on a real Serve."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from infra.cluster import ClusterConfig, connected
from infra.model_registry import ModelRegistry
from infra.tracking import Tracker, TrackingConfig
from serving.client import ServiceError, ServingClient
from serving.config import DeploymentScale, RolloutConfig, ServingConfig
from serving.launch import running
from tests.chaos._model_versions import NAME, Published, publish_bad, publish_good
from tests.integration.serving.expected import check_predictions, expected_scores
from tests.unit.serving_helpers import picture

pytestmark = pytest.mark.integration

LABELS = ["cat", "dog", "tree"]
SMALL = DeploymentScale(num_cpus=0.1)


def until(condition: Callable[[], bool]) -> None:
    """A failing test ends here and not at the limit of the whole run."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to that")


def state_of(client: ServingClient, version: str) -> str | None:
    return next((found.state for found in client.versions() if found.version == version), None)


def check_answer(client: ServingClient, published: Published, *, pinned: str | None = None) -> None:
    task = client.create_task(LABELS, pinned_version=pinned)
    answer = client.classify(task.task_id, [picture(1)])
    assert answer.model_version == published.version
    check_predictions(answer.results[0].predictions, expected_scores(published.bundle, LABELS, picture(1)))


def kill(deployment: str) -> None:
    for name in ray.util.list_named_actors(all_namespaces=True):
        if f"#{deployment}#" in name["name"]:
            ray.kill(ray.get_actor(name["name"], namespace=name["namespace"]), no_restart=True)


def test_the_service_follows_the_registry_and_comes_back_with_what_was_good(tmp_path: Path) -> None:
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", artifact_uri=str(tmp_path / "artifacts"))
    tracker = Tracker(tracking)
    registry = ModelRegistry(tracker)
    first, second, third = (publish_good(tracker, tmp_path / str(seed), seed=seed) for seed in (1, 2, 3))
    bad = publish_bad(tracker, tmp_path / "bad", "wrong golden features", seed=9)
    registry.promote(NAME, first.version)
    config = ServingConfig(
        tracking=tracking,
        model_name=NAME,
        task_store_uri=str(tmp_path / "tasks"),
        cache_path=tmp_path / "cache",
        port=0,
        ingress=SMALL.rebuilt(max_ongoing_requests=256),
        hypernetwork=SMALL,
        image_encoder=SMALL,
        rollout=RolloutConfig(poll_interval_s=0.5, sync_interval_s=0.25),
    )
    with connected(ClusterConfig(num_cpus=2)):
        with running(config) as url, ServingClient(url) as client:
            check_answer(client, first)

            registry.promote(NAME, second.version)
            until(lambda: state_of(client, second.version) == "champion")
            check_answer(client, second)
            assert client.create_task(LABELS).cached  # it was specialized ahead

            check_answer(client, first, pinned=first.version)
            check_answer(client, third, pinned=third.version)  # loaded for it
            with pytest.raises(ServiceError, match="no version 99") as unknown:
                client.create_task(LABELS, pinned_version="99")
            assert unknown.value.status == 409

            registry.promote(NAME, bad)
            until(lambda: state_of(client, bad) == "refused")
            check_answer(client, second)
            with pytest.raises(ServiceError, match="golden") as refused:
                client.create_task(LABELS, pinned_version=bad)
            assert refused.value.status == 409

            kill("Rollout")
            check_answer(client, second)  # it goes on without
            registry.rollback(NAME)
            registry.promote(NAME, third.version)
            until(lambda: state_of(client, third.version) == "champion")
            check_answer(client, third)
            registry.promote(NAME, bad)
            until(lambda: state_of(client, bad) == "refused")
        for weights in (tmp_path / "cache").rglob("model.safetensors"):
            weights.write_bytes(weights.read_bytes()[:-4])  # a disk that went bad: fetched anew
        with running(config) as url, ServingClient(url) as client:
            check_answer(client, third)  # the alias names the bad one
            assert state_of(client, bad) == "refused"
