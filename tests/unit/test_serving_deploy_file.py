"""The file for `serve deploy` and the switches, as far as they can be held to account without a cluster."""

from typing import Any

import pytest
import torch
import yaml
from ray.serve.schema import ServeDeploySchema

from infra.errors import BadInputError
from serving.config import DeploymentScale, ServingConfig
from serving.deploy_file import EXAMPLE, deploy_config
from serving.devices import usable_device
from serving.switches import FAST, SAFE
from tests.unit.deploy_helpers import KUBERAY, ROOT

FILE = ROOT / "infra/serve/config.yaml"


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


def test_the_file_is_what_the_builder_gives(written: dict[str, Any]) -> None:
    assert written == yaml.safe_load(yaml.safe_dump(deploy_config(EXAMPLE))), "run python -m serving.deploy_file"


def test_serve_deploy_accepts_the_file_and_the_builder_its_arguments(written: dict[str, Any]) -> None:
    (application,) = ServeDeploySchema.model_validate(written).applications
    assert application.import_path == "serving.app:build_application"
    assert ServingConfig.model_validate(application.args) == EXAMPLE
    scales = {"Ingress": EXAMPLE.ingress, "Hypernetwork": EXAMPLE.hypernetwork, "ImageEncoder": EXAMPLE.image_encoder}
    deployments = {deployment.name: deployment for deployment in application.deployments}
    assert deployments.keys() == {*scales, "Rollout"}
    for name in scales:
        deployment = deployments[name]
        scale, scaling = scales[name], deployment.autoscaling_config
        assert isinstance(scaling, dict)
        assert (scaling["min_replicas"], scaling["max_replicas"]) == (scale.min_replicas, scale.max_replicas)
        assert deployment.ray_actor_options.num_cpus == scale.num_cpus


def test_nothing_is_open_to_callers_without_a_key(written: dict[str, Any]) -> None:
    assert written["http_options"]["host"] == "127.0.0.1"
    assert "grpc_options" not in written  # no second door
    (application,) = written["applications"]
    assert "allow_anonymous" not in application["args"] and "tenants" not in application["args"]
    assert application["runtime_env"] == {"env_vars": dict(FAST)}  # no code from elsewhere, no secrets


def test_the_pods_of_the_service_have_the_same_switches() -> None:
    (service,) = yaml.safe_load_all((KUBERAY / "rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        found = {entry["name"]: entry["value"] for entry in container["env"] if entry["name"].startswith("RAY_SERVE_")}
        assert found == {**FAST, **SAFE}


def test_a_share_of_a_gpu_means_cuda_and_none_the_cpu() -> None:
    assert DeploymentScale(num_gpus=0.5).device == "cuda"
    assert usable_device(DeploymentScale()) == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_replica_without_the_gpu_it_was_promised_says_so() -> None:
    with pytest.raises(BadInputError, match=r"num_gpus=0.5 .* no CUDA device"):
        usable_device(DeploymentScale(num_gpus=0.5))
