"""The HTTP interface over deployments in this process: every refusal is a problem document, never a 500.

tests/integration/serving/ makes the calls through a real Serve.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from serving.config import ServingConfig
from tests.unit.serving_helpers import LIMITS, LocalService, check_problem, huge_png, make_bundle, picture, play

JPEG = picture(1, kind="JPEG", side=200)


JSON_REFUSALS: list[tuple[bytes, int, str]] = [
    (b'{"labels": []}', 422, "empty"),
    (b'{"labels": ["cat", " cat "]}', 422, "twice"),
    (b'{"labels": ["cat", "  "]}', 422, "label 2 is empty"),
    (b'{"labels": ["cat", "a\\u0000b"]}', 422, "label 2, 'a\\x00b', holds a control character"),
    (b'{"labels": ["cat\\ndog"]}', 422, "line break"),
    (b'{"labels": [NaN]}', 422, "labels.0"),
    (b'{"labels": ["cat"], "pinned_version": 1e400}', 422, "pinned_version"),
    (json.dumps({"labels": [str(i) for i in range(10_001)]}).encode(), 422, "10,001 labels"),
    (json.dumps({"labels": ["x" * 41]}).encode(), 422, "41 characters"),
    (b'{"labels": "cat"}', 422, "labels"),
    (b'{"labels": [1]}', 422, "labels.0"),
    (b'{"labels": ["cat"], "colour": "red"}', 422, "colour: there is no such field"),
    (b'{"lables": ["cat"]}', 422, "lables: there is no such field; did you mean labels?"),
    (b'{"labels": ["cat"], "pinned_version": 99}', 409, "'99'"),
    (b'{"labels": ["cat"], "pinned_version": true}', 422, "pinned_version"),
    (b'{"labels": ["cat"], "templates": []}', 422, "templates"),
    (b'{"labels": ["cat"], "templates": ["a photo"]}', 422, "a photo"),
    (json.dumps({"labels": ["cat"], "templates": ["{}"] * 101}).encode(), 422, "templates"),
    (b'{"labels": ["cat"], "pinned_version": "99"}', 409, "'99'"),
    (b"{}", 422, "labels"),
    (b"[]", 422, "the body: Input should be an object"),
    (b"", 400, "JSON"),
    (b'{"labels": ["cat"', 400, "JSON"),
    (b'{"labels": ["\\ud800"]}', 400, "JSON"),
    (b'{"labels": ["\xff"]}', 400, "JSON"),
    (b"[" * 50_000, 400, "JSON"),
]


def test_bad_task_requests_are_refused_with_the_reason(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        for body, status, detail in JSON_REFUSALS:
            response = await local.http.post("/v1/tasks", content=body, headers={"content-type": "application/json"})
            assert detail in check_problem(response, status)["detail"], body[:60]
        check_problem(await local.http.post("/v1/tasks", content=b'{"labels": ["cat"]}'), 415)
        assert not Path(config.task_store_uri).exists()  # nothing of a refused task is kept

    play(config, scenario)


PICTURE_REFUSALS = [
    (b"just some text", "image/png", 415, "JPEG, PNG or WebP"),
    (picture(0), "text/plain", 415, "text/plain"),
    (huge_png(), "image/png", 413, "pixels"),
    (picture(0, side=320), "image/png", 413, "320 x 320"),
    (JPEG[: len(JPEG) // 2], "image/jpeg", 422, "ends early"),
    (JPEG[:200], "image/jpeg", 422, "ends early"),
    (b"", "image/jpeg", 422, "no picture"),
    (b"x" * 400_001, "image/jpeg", 413, "400,000 bytes"),
]


@pytest.mark.parametrize("call", ["/v1/embed/image", "classify"])
def test_bad_pictures_are_refused_with_the_reason(config: ServingConfig, call: str) -> None:
    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})).json()["task_id"]
        path = f"/v1/tasks/{task}/classify" if call == "classify" else call
        for body, kind, status, detail in PICTURE_REFUSALS:
            response = await local.http.post(path, content=body, headers={"content-type": kind})
            assert detail in check_problem(response, status)["detail"], (kind, body[:20])

    play(config, scenario)


def test_a_bad_picture_fails_alone(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})).json()["task_id"]
        path = f"/v1/tasks/{task}/classify"
        files = [("images", picture(0)), ("images", b"text"), ("images", picture(2))]
        response = await local.http.post(path, files=files)
        assert response.status_code == 200
        good, bad, also_good = response.json()["results"]
        assert bad["predictions"] is None and bad["problem"]["status"] == 415
        alone = (await local.http.post(path, content=picture(2))).json()["results"][0]
        assert good["problem"] is None
        for found, expected in zip(also_good["predictions"], alone["predictions"], strict=True):
            assert found["label"] == expected["label"]
            assert found["score"] == pytest.approx(expected["score"], abs=1e-5)

    play(config, scenario)


FORM_REFUSALS: list[tuple[dict[str, Any], int, str]] = [
    ({"files": [("images", picture(0))] * 4}, 422, "at most 3"),
    ({"files": [("images", picture(0))] * 9}, 422, "more pictures than the 3 "),
    ({"files": [("images", picture(0)), ("other", b"x")]}, 422, "'other'"),
    ({"files": [("images", (None, "a text"))]}, 422, "send it as a file: -F images=@photo.jpg"),
    ({"files": [("image", picture(0))]}, 422, "'image'; it may hold images (files); did you mean images?"),
    ({"content": b"garbage", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "form"),
    ({"content": b"garbage", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
    (
        {"content": b"--x\r\nfoo: bar\r\n\r\n1\r\n--x--", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        400,
        "",
    ),
]


def test_bad_forms_are_refused_with_the_reason(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        for request, status, detail in FORM_REFUSALS:
            assert detail in check_problem(await local.http.post("/v1/embed/image", **request), status)["detail"], request
        at_once: list[tuple[dict[str, Any], int, str]] = [
            ({"files": [("images", picture(0))]}, 422, "labels is empty"),
            ({"files": [("labels", (None, "cat"))]}, 422, "no picture"),
            ({"data": {"labels": ["cat"], "top_k": ["1", "2"]}, "files": [("images", picture(0))]}, 422, "top_k"),
            ({"data": {"labels": ["cat"], "top_k": "x"}, "files": [("images", picture(0))]}, 422, "top_k"),
            ({"data": {"labels": [str(i) for i in range(10_001)]}, "files": [("images", b"")]}, 413, "bytes"),
            ({"json": {}}, 415, "multipart"),
            *[(_form_in_utf_7(name), 400, "cannot be read") for name in ("labels", "templates", "pinned_version")],
        ]
        for request, status, detail in at_once:
            assert detail in check_problem(await local.http.post("/v1/classify", **request), status)["detail"]

    play(config, scenario)


def test_a_form_that_was_cut_off_loses_no_picture_silently(config: ServingConfig) -> None:
    head = '--x\r\ncontent-disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    label = b'--x\r\ncontent-disposition: form-data; name="labels"\r\n\r\ncat\r\n'
    part = head.encode() + picture(0) + b"\r\n"
    cut = [part + head.encode() + picture(1)[:500], part, part + b"--x", part + b"--x\r\ncontent-dispo", b""]

    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})).json()["task_id"]
        headers = {"content-type": "multipart/form-data; boundary=x"}
        for path in ("/v1/embed/image", f"/v1/tasks/{task}/classify", "/v1/classify"):
            start = label if path == "/v1/classify" else b""
            for body in cut:
                refused = await local.http.post(path, content=start + body, headers=headers)
                assert check_problem(refused, 400)["detail"] == "the multipart form ends before its last boundary", body[-30:]
            for end in (b"--x--", b"--x--\r\n"):
                answer = await local.http.post(path, content=start + part + end, headers=headers)
                assert len(answer.json()["results"]) == 1
        empty = await local.http.post("/v1/embed/image", content=b"--x--\r\n", headers=headers)
        assert check_problem(empty, 422)["type"].endswith(":no_image")

    play(config, scenario)


def _form_in_utf_7(name: str) -> dict[str, Any]:
    """A form whose charset turns plain bytes into half of a surrogate pair, which is no text."""
    parts = "".join(
        f'--x\r\ncontent-disposition: form-data; name="{field}"\r\n\r\n+2AA- {{}}\r\n' for field in ("labels", name)
    )
    return {
        "content": f"{parts}--x--\r\n".encode(),
        "headers": {"content-type": "multipart/form-data; boundary=x; charset=utf-7"},
    }


def test_queries_and_paths_are_checked(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})).json()["task_id"]
        for query in ("top_k=0", "top_k=51", "top_k=-1", "top_k=x", f"top_k={'9' * 5000}", "parameters=other"):
            check_problem(await local.http.post(f"/v1/tasks/{task}/classify?{query}", content=picture(0)), 422)
        for unknown in ("a" * 52, "x", "%2e%2e%2fetc", task.upper()):
            check_problem(await local.http.get(f"/v1/tasks/{unknown}"), 404)
            check_problem(await local.http.delete(f"/v1/tasks/{unknown}"), 404)
            check_problem(await local.http.get(f"/v1/tasks/{unknown}/export"), 404)
            check_problem(await local.http.post(f"/v1/tasks/{unknown}/classify", content=picture(0)), 404)
        for nothing in ("/nothing", "/docs"):
            assert "/openapi.json" in check_problem(await local.http.get(nothing), 404)["detail"]
        wrong = await local.http.put("/v1/tasks")
        assert "'/v1/tasks' takes GET, HEAD, POST, not PUT" in check_problem(wrong, 405)["detail"]
        assert wrong.headers["allow"] == "GET, HEAD, POST"
        for path in ("/", "/healthz", "/v1/models", f"/v1/tasks/{task}"):
            assert (await local.http.head(path)).status_code == 200, path
        for texts in ([], [" "], ["a"] * 5, ["word " * 90]):
            check_problem(await local.http.post("/v1/embed/text", json={"texts": texts}), 422)
        endless = check_problem(await local.http.post("/v1/embed/text", json={"texts": ["cat", "é" * 100_000]}), 422)
        assert endless["detail"] == "text 2 has 100,000 characters; at most 10,000 are allowed"

    play(config, scenario)


def test_a_query_parameter_that_a_call_does_not_take_is_refused_by_name(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})).json()["task_id"]
        classify = f"/v1/tasks/{task}/classify"
        for method, path, detail in (
            ("POST", f"{classify}?topk=1", "'topk'; this call takes top_k and parameters; did you mean top_k?"),
            ("POST", f"{classify}?top_k=1&zzz=1", "'zzz'; this call takes top_k and parameters"),
            ("GET", "/v1/tasks?limit=1", "'limit'; this call takes none"),
            ("GET", f"/v1/tasks/{task}?top_k=1", "'top_k'; this call takes none"),
            ("POST", "/v1/classify?parameters=neutral", "'parameters'; it is a field of the form here"),
        ):
            found = check_problem(await local.http.request(method, path, content=picture(0)), 422)
            assert found["detail"] == f"there is no query parameter {detail}"
            assert found["type"].endswith(":unknown_parameter")
        twice = check_problem(await local.http.post(f"{classify}?top_k=1&top_k=2", content=picture(0)), 422)
        assert twice["detail"] == "the query parameter 'top_k' is given more than once"
        for path in ("/?utm=1", "/style.css?1", "/healthz?verbose"):
            assert (await local.http.get(path)).status_code == 200
        assert (await local.http.post(f"{classify}?top_k=1&parameters=neutral", content=picture(0))).status_code == 200
        form: dict[str, Any] = {"data": {"labels": ["cat"], "parameters": "neutral"}, "files": [("images", picture(0))]}
        assert (await local.http.post("/v1/classify", **form)).json()["parameters"] == "neutral"
        form["data"]["parameters"] = "other"
        check_problem(await local.http.post("/v1/classify", **form), 422)

    play(config, scenario)


def test_a_long_body_is_refused_before_it_has_arrived(config: ServingConfig) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        for _ in range(10_000):
            sent += 10_000
            yield b"x" * 10_000

    async def scenario(local: LocalService) -> None:
        check_problem(await local.http.post("/v1/embed/image", content=endless()), 413)

    play(config, scenario)
    assert sent < 2 * LIMITS.max_body_bytes


def test_a_body_that_does_not_arrive_gives_its_place_up(config: ServingConfig) -> None:
    async def never() -> Any:
        yield b"--x\r\n"
        await asyncio.Event().wait()

    async def scenario(local: LocalService) -> None:
        for path in ("/v1/tasks", "/v1/embed/image", "/v1/classify"):
            kind = {"/v1/tasks": "application/json", "/v1/classify": "multipart/form-data; boundary=x"}.get(path, "image/png")
            response = await local.http.post(path, content=never(), headers={"content-type": kind})
            check_problem(response, 408)
            assert response.headers["connection"] == "close"
        assert "hyperclip_requests_in_flight 0.0" in (await local.http.get("/metrics")).text

    play(config.rebuilt(limits=LIMITS.rebuilt(body_timeout_s=0.02)), scenario)


def test_calls_from_pages_of_other_sites_are_refused(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        body = {"labels": ["cat"]}
        check_problem(await local.http.post("/v1/tasks", json=body, headers={"sec-fetch-site": "cross-site"}), 403)
        response = await local.http.post(
            "/v1/tasks", json=body, headers={"sec-fetch-site": "same-origin", "origin": "http://x"}
        )
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith("access-control")]

    play(config, scenario)


@pytest.mark.parametrize("loss", ["absent", "damaged"])
def test_a_lost_encoder_is_made_again(config: ServingConfig, loss: str) -> None:
    async def scenario(local: LocalService) -> None:
        created = (await local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})).json()
        for path in Path(config.task_store_uri).rglob("encoder.safetensors"):
            path.unlink() if loss == "absent" else path.write_bytes(b"damaged")
        answer = (await local.http.post(f"/v1/tasks/{created['task_id']}/classify", content=picture(0))).json()
        assert len(answer["results"][0]["predictions"]) == 2
        assert answer["timings_ms"]["specialize"] > 0
        assert answer["specialization_id"] == created["specialization_id"]

    play(config, scenario)


def test_a_task_follows_the_model_unless_it_is_pinned(config: ServingConfig, tmp_path: Path) -> None:
    followed: dict[str, Any] = {}
    pinned: dict[str, Any] = {}

    async def before(local: LocalService) -> None:
        followed.update((await local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})).json())
        body = {"labels": ["cat", "dog"], "pinned_version": followed["model_version"]}
        pinned.update((await local.http.post("/v1/tasks", json=body)).json())
        assert pinned["task_id"] != followed["task_id"]

    async def after(local: LocalService) -> None:
        answer = (await local.http.post(f"/v1/tasks/{followed['task_id']}/classify", content=picture(0))).json()
        assert answer["task_id"] == followed["task_id"]
        assert answer["specialization_id"] != followed["specialization_id"]
        assert answer["model_version"] != followed["model_version"]
        check_problem(await local.http.post(f"/v1/tasks/{pinned['task_id']}/classify", content=picture(0)), 409)

    play(config, before)
    play(config.rebuilt(bundle_uri=str(make_bundle(tmp_path / "next", seed=1))), after)
