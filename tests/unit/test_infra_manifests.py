"""The manifests for KubeRay, as far as they can be held to account without a cluster.

Kubernetes' own kinds are checked against its schema.  Ray's kinds have none that ships with a package: their pods are checked
against the schema as pods, the names of the other fields against those of KubeRay's types, and the rest by the security floor
stated here.
"""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from pipeline.config import load_run_config
from pipeline.runner import plan
from serving.config import ServingConfig
from serving.tenants import TENANTS_VARIABLE
from tests.unit.deploy_helpers import COMPOSE, DOCKERFILES, KUBERAY, LOCK, PINNED, ROOT

KUBERNETES_VERSION = "1.34"
KUBERAY_FIELDS = {  # read from the Go types of KubeRay 1.5; an unknown field would be dropped by the API server without a word
    "RayCluster": {
        "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
        "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs",
    },
    "RayJob": {
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
        "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML",
        "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend",
        "ttlSecondsAfterFinished",
    },
    "RayService": {
        "excludeHeadPodFromServeSvc", "rayClusterConfig", "rayClusterDeletionDelaySeconds", "serveConfigV2", "serveService",
        "upgradeStrategy",
    },
    "head": {"enableIngress", "headService", "rayStartParams", "serviceType", "template"},
    "worker": {
        "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas",
        "scaleStrategy", "suspend", "template",
    },
    "autoscaler": {
        "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext", "upscalingMode",
        "version", "volumeMounts",
    },
}  # fmt: skip


def documents() -> list[dict[str, Any]]:
    return [
        document
        for path in sorted(KUBERAY.glob("*.yaml"))
        if path.name not in ("kustomization.yaml", "run.yaml")
        for document in yaml.safe_load_all(path.read_text())
    ]


def ray_objects() -> list[dict[str, Any]]:
    return [document for document in documents() if document["apiVersion"] == "ray.io/v1"]


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    return {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}[
        document["kind"]
    ]


def pod_templates(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    cluster = cluster_spec(document)
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if "submitterPodTemplate" in document["spec"]:
        yield "submitter", document["spec"]["submitterPodTemplate"]


def by_kind(document: dict[str, Any]) -> str:
    return str(document["kind"])


def find(node: Any, key: str) -> Iterator[Any]:
    """Every value under a key, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from find(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from find(value, key)


# ---- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [d for d in documents() if d["apiVersion"] != "ray.io/v1"], ids=by_kind)
def test_kubernetes_own_kinds_fit_its_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("document", ray_objects(), ids=by_kind)
def test_the_pods_of_rays_kinds_fit_the_schema_of_pods(document: dict[str, Any]) -> None:
    for name, template in pod_templates(document):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, **template.get("metadata", {})},
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("document", ray_objects(), ids=by_kind)
def test_the_fields_of_rays_kinds_are_kuberays(document: dict[str, Any]) -> None:
    assert document["spec"].keys() <= KUBERAY_FIELDS[document["kind"]]
    cluster = cluster_spec(document)
    assert cluster.keys() <= KUBERAY_FIELDS["RayCluster"]
    assert cluster["headGroupSpec"].keys() <= KUBERAY_FIELDS["head"]
    assert cluster["autoscalerOptions"].keys() <= KUBERAY_FIELDS["autoscaler"]
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= KUBERAY_FIELDS["worker"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())


def test_every_address_that_all_may_reach_has_its_reason_beside_it() -> None:
    for path in [*KUBERAY.glob("*.yaml"), COMPOSE, *DOCKERFILES]:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if "0.0.0.0" in line and "cidr" not in line:
                assert lines[number - 1].lstrip().startswith("# All addresses"), f"{path.name}:{number + 1}"


@pytest.mark.parametrize("document", ray_objects(), ids=by_kind)
def test_ray_is_the_installed_version_and_asks_for_a_token(document: dict[str, Any]) -> None:
    cluster = cluster_spec(document)
    assert cluster["rayVersion"] == ray.__version__ == LOCK["ray"]
    assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("document", ray_objects(), ids=by_kind)
def test_every_container_runs_without_privileges(document: dict[str, Any]) -> None:
    contexts = [
        container["securityContext"]
        for _, template in pod_templates(document)
        for container in [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]
    ]
    for context in [*contexts, cluster_spec(document)["autoscalerOptions"]["securityContext"]]:
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == 1000  # the user of our images: a name alone cannot be checked by the kubelet
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for key in ("hostNetwork", "hostPID", "hostIPC", "hostPath", "privileged"):
        assert list(find(document, key)) == []


@pytest.mark.parametrize("document", ray_objects(), ids=by_kind)
def test_every_container_has_requests_and_equal_memory_limits(document: dict[str, Any]) -> None:
    for _, template in pod_templates(document):
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            # Ray divides what the limit says; a smaller request would let the node run out of memory under it
            assert resources["requests"]["memory"] == resources["limits"]["memory"]
            assert "cpu" in resources["requests"]


@pytest.mark.parametrize("document", ray_objects(), ids=by_kind)
def test_worker_groups_scale_between_bounds_and_gpus_are_limited(document: dict[str, Any]) -> None:
    cluster = cluster_spec(document)
    assert cluster["enableInTreeAutoscaling"] is True
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    for group in groups.values():
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["minReplicas"] < group["maxReplicas"]
    if document["kind"] != "RayService":
        assert groups.keys() == {"cpu", "gpu"}
        for name, limit in (("cpu", None), ("gpu", "1")):
            limits = groups[name]["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert limits.get("nvidia.com/gpu") == limit


def test_secrets_come_by_reference_only() -> None:
    for document in ray_objects():
        variables = [variable for env in find(document, "env") for variable in env]
        assert {"MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"} <= {variable["name"] for variable in variables}
        for variable in variables:
            if re.search("KEY|PASSWORD|TOKEN|SECRET|USERNAME", variable["name"]):
                assert variable.keys() == {"name", "valueFrom"}
                assert variable["valueFrom"].keys() == {"secretKeyRef"}
    assert [document for document in documents() if document["kind"] == "Secret"] == []


def test_images_are_pinned_and_named_in_the_kustomization() -> None:
    images = {image for document in ray_objects() for image in find(document, "image")}
    assert all(PINNED.match(image) for image in images), images
    kustomization = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {f"{entry['name']}:{entry['newTag']}" for entry in kustomization["images"]} == images
    assert {entry["newTag"] for entry in kustomization["images"]} == {project}


def test_the_network_policy_opens_rays_ports_to_nobody_outside() -> None:
    (policy,) = [document for document in documents() if document["kind"] == "NetworkPolicy"]
    assert policy["spec"]["podSelector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert "Ingress" in policy["spec"]["policyTypes"]
    for rule in policy["spec"]["ingress"]:
        assert rule["from"], "an empty `from` lets everybody in"
        ports = {entry["port"] for entry in rule.get("ports", [])}
        for peer in rule["from"]:
            operator = peer.get("podSelector", {}).get("matchLabels", {}) == {"app.kubernetes.io/name": "kuberay-operator"}
            if "namespaceSelector" in peer:  # from another namespace
                assert peer["namespaceSelector"], "an empty selector is every namespace"
                assert ports
                assert not ports & {6379, 10001}
                assert 8265 not in ports or operator
            else:
                assert peer["podSelector"]["matchLabels"]
    (web,) = [
        peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule["to"] if peer.get("ipBlock", {}).get("except")
    ]
    assert web["except"] == ["169.254.0.0/16"]


def test_the_namespace_refuses_privileged_pods() -> None:
    (namespace,) = [document for document in documents() if document["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_job_runs_the_configuration_that_is_mounted() -> None:
    (job,) = [document for document in documents() if document["kind"] == "RayJob"]
    assert job["spec"]["entrypoint"] == "hyperclip run /etc/hyperclip/run.yaml"
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]  # the driver runs there
    (volume,) = [volume for volume in head["volumes"] if "configMap" in volume]
    (mount,) = [mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == volume["name"]]
    assert mount["mountPath"] == "/etc/hyperclip"
    (generator,) = yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())["configMapGenerator"]
    assert generator["name"] == volume["configMap"]["name"]
    assert generator["options"]["disableNameSuffixHash"] is True
    assert generator["files"] == ["run.yaml"]


def test_the_run_of_the_job_is_whole_and_fits_its_cluster() -> None:
    run = load_run_config(KUBERAY / "run.yaml")
    steps = [entry.step.title for entry in plan(run)]
    assert {"Download the train pictures", "Train the model", "Register the model"} <= set(steps)
    assert run.cluster.address == "auto"
    assert run.showcase is None  # serving is the RayService's; a run that served would keep its cluster
    (job,) = [document for document in documents() if document["kind"] == "RayJob"]
    groups = {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    workers = run.training.workers
    assert workers.use_gpu and workers.num_workers <= groups["gpu"]["maxReplicas"]  # one GPU a pod
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert workers.cpus_per_worker <= int(limits["cpu"])
    assert run.training.contrastive_batch_size % workers.num_workers == 0


def test_the_service_serves_what_the_job_registers() -> None:
    run = load_run_config(KUBERAY / "run.yaml")
    (service,) = [document for document in documents() if document["kind"] == "RayService"]
    served = ServingConfig.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"])
    assert (served.model_name, served.tracking) == (run.name, run.tracking)
    assert served.task_store_uri.startswith(f"{run.workspace}/")


def test_the_service_has_its_keys_from_a_secret() -> None:
    (service,) = [document for document in documents() if document["kind"] == "RayService"]
    served = ServingConfig.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"])
    assert not served.allow_anonymous and served.tenants == ()
    environments = list(find(service, "env"))
    assert len(environments) == 2  # the head builds the application, the workers run it
    for variables in environments:
        (tenants,) = [variable for variable in variables if variable["name"] == TENANTS_VARIABLE]
        assert tenants["valueFrom"]["secretKeyRef"]["name"] == "hyperclip-tenants"


def test_the_service_deploys_three_parts_that_scale_apart() -> None:
    (service,) = [document for document in documents() if document["kind"] == "RayService"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert config.http_options.port == 8000
    (application,) = config.applications
    assert application.import_path == "serving.app:build_application"
    arguments = ServingConfig.model_validate(application.args)
    assert arguments.tracking is not None
    assert (arguments.model_name, arguments.alias) == ("hyperclip", "champion")
    assert "://" in arguments.task_store_uri  # a folder of one pod would lose the tasks of the others
    assert [deployment.name for deployment in application.deployments] == ["Ingress", "Hypernetwork", "ImageEncoder"]
    for deployment in application.deployments:
        scaling = deployment.autoscaling_config
        assert isinstance(scaling, dict)
        assert 1 <= scaling["min_replicas"] < scaling["max_replicas"]
        assert scaling["target_ongoing_requests"] > 0
    threads = {"Hypernetwork": arguments.hypernetwork.num_threads, "ImageEncoder": arguments.image_encoder.num_threads}
    cpus = {deployment.name: deployment.ray_actor_options.num_cpus for deployment in application.deployments}
    assert threads.items() <= cpus.items()
    head_ports = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert {"name": "serve", "containerPort": 8000} in head_ports


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_puts_one_tag_and_one_namespace_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "kuberay"
    shutil.copytree(KUBERAY, folder)
    kustomization = folder / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("newTag: 0.1.0", "newTag: 9.9.9"))
    built = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True).stdout
    objects = list(yaml.safe_load_all(built))
    images = {image for document in objects for image in find(document, "image")}
    assert images
    assert all(image.endswith(":9.9.9") for image in images)
    assert all("app.kubernetes.io/component" in document["metadata"]["labels"] for document in objects)
    assert {d["metadata"].get("namespace") for d in objects if d["kind"] != "Namespace"} == {"hyperclip"}
