"""The service on a real Serve over real HTTP: every call, every refusal, a killed replica, a restart."""

import io
import json
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families

from infra.errors import BadInputError
from serving.client import ServiceError, ServingClient
from serving.config import ServingConfig
from serving.launch import running
from tests.integration.serving.expected import check_predictions, expected_scores
from tests.unit.serving_helpers import huge_png, picture
from training.bundle import Bundle
from training.preprocess import preprocess

pytestmark = pytest.mark.integration

LABELS = ["cat", "dog", "a red bicycle"]


def test_a_task_is_made_once_and_classifies_as_the_model_does(client: ServingClient, bundle: Bundle) -> None:
    created = client.create_task(LABELS)
    again = client.create_task([" cat", "dog ", "a red bicycle"])
    assert not created.cached and again.cached
    assert (again.task_id, again.specialization_id) == (created.task_id, created.specialization_id)
    info = client.task(created.task_id)
    assert info.labels == tuple(LABELS) and info.specialization_id == created.specialization_id

    images = [picture(seed, kind=kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    answer = client.classify(created.task_id, images)
    assert (answer.task_id, answer.model_version) == (created.task_id, created.model_version)
    for image, result in zip(images, answer.results, strict=True):
        check_predictions(result.predictions, expected_scores(bundle, LABELS, image))
    assert max(result.batch_size or 0 for result in answer.results) > 1


def test_pictures_of_different_tasks_share_batches(client: ServingClient, bundle: Bundle) -> None:
    tasks = [[f"task {i} name {j}" for j in range(2 + i)] for i in range(4)]
    ids = [client.create_task(labels).task_id for labels in tasks]
    calls = [(place % 4, picture(place)) for place in range(32)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda call: client.classify(ids[call[0]], [call[1]]), calls))
    for (place, image), answer in zip(calls, answers, strict=True):
        check_predictions(answer.results[0].predictions, expected_scores(bundle, tasks[place], image))
    assert max(answer.results[0].batch_size or 0 for answer in answers) > 1


def test_labels_and_pictures_in_one_call(client: ServingClient, bundle: Bundle) -> None:
    answer = client.classify_at_once(["tree", "house"], [picture(5)], top_k=1)
    expected = expected_scores(bundle, ["tree", "house"], picture(5))
    (best,) = answer.results[0].predictions or ()
    assert best.label == max(expected, key=lambda label: expected[label][0])
    assert answer.task_id == client.create_task(["tree", "house"]).task_id


def test_a_raw_body_is_one_picture_and_neutral_parameters_differ(http: httpx.Client, client: ServingClient) -> None:
    task = client.create_task(LABELS).task_id
    headers = {"content-type": "image/png"}
    by_parameters = {
        parameters: http.post(
            f"/v1/tasks/{task}/classify?top_k=3&parameters={parameters}", content=picture(0), headers=headers
        ).json()
        for parameters in ("specialized", "neutral")
    }
    scores = {
        parameters: {found["label"]: found["score"] for found in answer["results"][0]["predictions"]}
        for parameters, answer in by_parameters.items()
    }
    assert scores["specialized"].keys() == scores["neutral"].keys()
    assert max(abs(scores["specialized"][label] - scores["neutral"][label]) for label in LABELS) > 1e-3


def test_features_of_pictures_and_texts_are_those_of_the_model(client: ServingClient, bundle: Bundle) -> None:
    tensor = torch.from_numpy(preprocess(picture(0), bundle.preprocess))[None]
    neutral = bundle.model.encode_image(tensor)[0].tolist()
    found = client.embed_images([picture(0), b"no picture"])
    assert found.dimensions == len(neutral)
    assert found.results[0].embedding == pytest.approx(neutral, abs=1e-5)
    assert found.results[1].problem is not None and found.results[1].problem.status == 415
    text = bundle.model.encode_text(bundle.tokenizer(["a cat"]))[0].tolist()
    assert client.embed_texts(["a cat"]).results[0].embedding == pytest.approx(text, abs=1e-5)


def test_a_task_is_exported_and_deleted(client: ServingClient) -> None:
    task = client.create_task(["pen", "paper"]).task_id
    package = client.export(task)
    assert client.export(task) == package
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert {"model.onnx", "labels.json"} <= set(archive.namelist())
        assert json.loads(archive.read("labels.json"))["labels"] == ["pen", "paper"]
    client.delete_task(task)
    for call in (client.task, client.export, client.delete_task, lambda gone: client.classify(gone, [picture(0)])):
        with pytest.raises(ServiceError, match="no such task") as refused:
            call(task)
        assert refused.value.status == 404
    assert not client.create_task(["pen", "paper"]).cached


def test_the_service_describes_itself(client: ServingClient, http: httpx.Client, bundle: Bundle) -> None:
    (model,) = client.models()
    assert model.digest == bundle.digest and model.image_size == bundle.preprocess.image_size
    assert client.health().model_version == model.version
    client.create_task(LABELS)
    metrics = http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'hyperclip_tasks_total{cached="true"}' in metrics.text
    assert "/v1/tasks/{task_id}/classify" in http.get("/openapi.json").json()["paths"]


def test_the_page_and_its_files_are_served_with_safe_headers(http: httpx.Client) -> None:
    for path, text in {
        "/": "<title>HyperCLIP",
        "/app.js": "import {",
        "/service.js": "fetch(",
        "/style.css": ":root",
        "/icon.svg": "<svg",
    }.items():
        response = http.get(path)
        assert response.status_code == 200 and text in response.text
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in response.headers


def test_every_answer_has_one_request_id(http: httpx.Client) -> None:
    given = http.get("/v1/models", headers={"x-request-id": "mine-1"})
    assert given.headers.get_list("x-request-id") == ["mine-1"]
    (made,) = http.get("/v1/tasks/unknown").headers.get_list("x-request-id")
    assert made


def chunks(total: int) -> Iterator[bytes]:
    for _ in range(total // 100_000):
        yield b"x" * 100_000


def test_bad_input_is_refused_with_a_problem_document(http: httpx.Client, client: ServingClient) -> None:
    task = client.create_task(LABELS).task_id
    path = f"/v1/tasks/{task}/classify"
    jpeg = picture(1, kind="JPEG", side=200)
    as_json = {"content-type": "application/json"}
    refusals: dict[str, tuple[int, str, str, dict[str, Any]]] = {
        "no label": (422, "POST", "/v1/tasks", {"json": {"labels": []}}),
        "repeated label": (422, "POST", "/v1/tasks", {"json": {"labels": ["a", "a"]}}),
        "10,001 labels": (422, "POST", "/v1/tasks", {"json": {"labels": [str(i) for i in range(10_001)]}}),
        "10,001 labels in a form": (
            422, "POST", "/v1/classify", {"data": {"labels": [str(i) for i in range(10_001)]}, "files": {"images": picture(0)}},
        ),
        "malformed JSON": (400, "POST", "/v1/tasks", {"content": b'{"labels": [', "headers": as_json}),
        "unknown key": (422, "POST", "/v1/tasks", {"json": {"labels": ["a"], "colour": 1}}),
        "other version": (409, "POST", "/v1/tasks", {"json": {"labels": ["a"], "pinned_version": "99"}}),
        "no JSON type": (415, "POST", "/v1/tasks", {"content": b"{}"}),
        "unknown task": (404, "POST", f"/v1/tasks/{'a' * 52}/classify", {"content": picture(0)}),
        "text as picture": (415, "POST", path, {"content": b"some text", "headers": {"content-type": "image/png"}}),
        "text type": (415, "POST", path, {"content": b"some text", "headers": {"content-type": "text/plain"}}),
        "huge picture": (413, "POST", path, {"content": huge_png()}),
        "truncated JPEG": (422, "POST", path, {"content": jpeg[: len(jpeg) // 2]}),
        "nothing": (422, "POST", path, {"content": b""}),
        "long body": (413, "POST", path, {"content": b"x" * 2_000_001}),
        "long body in chunks": (413, "POST", path, {"content": chunks(5_000_000)}),
        "too many pictures": (422, "POST", path, {"files": [("images", picture(0))] * 9}),
        "broken form": (400, "POST", path, {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}),
        "bad query": (422, "POST", f"{path}?top_k=none", {"content": picture(0)}),
        "no text": (422, "POST", "/v1/embed/text", {"json": {"texts": []}}),
        "cross site": (403, "POST", "/v1/tasks", {"json": {"labels": ["a"]}, "headers": {"sec-fetch-site": "cross-site"}}),
        "unknown path": (404, "GET", "/v2/tasks", {}),
        "wrong method": (405, "PUT", "/v1/tasks", {}),
    }  # fmt: skip
    for name, (status, method, where, request) in refusals.items():
        response = http.request(method, where, **request)
        assert response.status_code == status, (name, response.text)
        assert response.headers["content-type"] == "application/problem+json", name
        assert response.json()["status"] == status and response.json()["detail"], name
    assert client.health().status == "ok"


def test_a_new_encoder_replica_finds_the_tasks_it_never_met(client: ServingClient, bundle: Bundle) -> None:
    task = client.create_task(LABELS).task_id
    client.classify(task, [picture(0)])
    (replica,) = [name for name in ray.util.list_named_actors(all_namespaces=True) if "#ImageEncoder#" in name["name"]]
    ray.kill(ray.get_actor(replica["name"], namespace=replica["namespace"]), no_restart=True)
    answer = retried(lambda: client.classify(task, [picture(0)]))
    check_predictions(answer.results[0].predictions, expected_scores(bundle, LABELS, picture(0)))
    assert answer.timings_ms.specialize is None  # it was read, not made again


def retried(call: Any) -> Any:
    """As a client should: a 503 while a replica restarts is asked again."""
    for _ in range(1000):
        try:
            return call()
        except ServiceError as error:
            if error.status != 503:
                raise
    raise AssertionError("the service did not come back")


def test_the_node_gives_out_the_metrics_of_every_deployment(client: ServingClient) -> None:
    client.classify(client.create_task(["a name", "another"]).task_id, [picture(0)])
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def given_out() -> set[tuple[str, str | None]]:
        families = text_string_to_metric_families(httpx.get(address, timeout=30, trust_env=False).text)
        return {(one.name, one.labels.get("deployment")) for family in families for one in family.samples if one.value > 0}

    wanted = {
        ("ray_hyperclip_requests_total", "Ingress"),
        ("ray_hyperclip_labels_total", "Hypernetwork"),
        ("ray_hyperclip_label_bytes", "Hypernetwork"),
        ("ray_hyperclip_tasks_resident", "ImageEncoder"),
        ("ray_hyperclip_resident_bytes", "ImageEncoder"),
    }
    deadline = time.monotonic() + 60
    while missing := wanted - given_out():
        assert time.monotonic() < deadline, missing
        time.sleep(0.2)  # replicas tell their node every few seconds


def test_a_second_service_on_the_same_cluster_is_refused(base_url: str, config: ServingConfig) -> None:
    with pytest.raises(BadInputError, match="runs a service already"), running(config):
        pass
