"""Streamed answers over HTTP: what they say, and when an answer is no stream."""

import json

import pytest

from serving.classify_stream import NDJSON, wants_lines
from serving.config import ServingConfig
from tests.unit.serving_helpers import LIMITS, LocalService, check_problem, parsed_stream, picture, play

LINES = {"accept": NDJSON}
FORM = "multipart/form-data; boundary=x"


def test_a_stream_answers_as_single_calls_do(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["cat", "dog", "horse"]})).json()["task_id"]
        path = f"/v1/tasks/{task}/classify?top_k=2"
        pictures = [picture(seed) for seed in range(12)]  # more than one answer may have
        pictures[4], pictures[7] = b"text", b"x" * (LIMITS.max_body_bytes + 1)
        response = await local.http.post(path, files=[("images", one) for one in pictures], headers=LINES)
        assert (response.status_code, response.headers["content-type"]) == (200, NDJSON)
        lines, end = parsed_stream(response.text)
        assert sorted(lines) == list(range(12))
        assert (end.num_pictures, end.num_failed, end.problem) == (12, 2, None)
        assert lines[4].problem is not None and lines[4].problem.status == 415
        assert lines[7].problem is not None and lines[7].problem.status == 413
        for index in (0, 11):
            alone = (await local.http.post(path, content=pictures[index])).json()
            assert lines[index].model_version == alone["model_version"]
            for found, expected in zip(lines[index].predictions or (), alone["results"][0]["predictions"], strict=True):
                assert found.label == expected["label"] and found.score == pytest.approx(expected["score"], abs=1e-5)

    play(config, scenario)


def test_labels_and_pictures_in_one_stream_are_answered_as_in_one_call(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        form: dict[str, list[str]] = {"labels": ["cat", "dog", "horse"], "templates": ["a {}"], "top_k": ["2"]}
        pictures = [picture(seed) for seed in range(12)]  # more than one answer may have
        files = [("images", one) for one in pictures]
        response = await local.http.post("/v1/classify", data=form, files=files, headers=LINES)
        assert (response.status_code, response.headers["content-type"]) == (200, NDJSON)
        lines, end = parsed_stream(response.text)
        assert (sorted(lines), end.num_failed, end.problem) == (list(range(12)), 0, None)
        alone = (await local.http.post("/v1/classify", data=form, files=files[11:])).json()["results"][0]
        for found, expected in zip(lines[11].predictions or (), alone["predictions"], strict=True):
            assert found.label == expected["label"] and found.score == pytest.approx(expected["score"], abs=1e-5)
        for wrong, says in (
            ({"labels": ["cat"], "top_k": ["0"]}, "top_k must be"),
            ({"labels": ["cat", "cat"]}, "cat"),
            ({"top_k": ["1"]}, "label"),
            ({"labels": ["cat"], "top_k": ["1", "2"]}, "2 times"),
        ):
            refused = await local.http.post("/v1/classify", data=wrong, files=files[:1], headers=LINES)
            lines, end = parsed_stream(refused.text)
            assert (lines, refused.status_code) == ({}, 200)
            assert end.problem is not None and end.problem.status == 422 and says in end.problem.detail
        check_problem(await local.http.post("/v1/classify", json={}, headers=LINES), 415)

    play(config, scenario)


def test_what_can_be_refused_before_the_first_line_is_no_stream(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["cat", "dog"]})).json()["task_id"]
        files = [("images", picture(0))]
        check_problem(await local.http.post(f"/v1/tasks/{'a' * 52}/classify", files=files, headers=LINES), 404)
        path = f"/v1/tasks/{task}/classify"
        check_problem(await local.http.post(path, content=picture(0), headers=LINES), 415)
        check_problem(await local.http.post(f"{path}?top_k=0", files=files, headers=LINES), 422)
        long = {"content-length": str(LIMITS.max_stream_bytes + 1), "content-type": FORM, **LINES}
        check_problem(await local.http.post(path, content=b"", headers=long), 413)

    play(config, scenario)


def test_accept_is_read_as_a_list() -> None:
    assert wants_lines("application/json;q=0.5, application/x-ndjson;q=1")
    assert not wants_lines("*/*") and not wants_lines("")


def test_every_line_is_one_line(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        labels = ["a\u2028b", "line \u0085 break"]
        created = await local.http.post("/v1/tasks", json={"labels": labels[:1]})
        path = f"/v1/tasks/{created.json()['task_id']}/classify"
        response = await local.http.post(path, files=[("images", picture(0))], headers=LINES)
        first, _ = response.content.strip().split(b"\n")
        assert json.loads(first)["predictions"][0]["label"] == labels[0]

    play(config, scenario)
