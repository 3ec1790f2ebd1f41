"""What the service says of itself: its page and its OpenAPI document."""

from collections.abc import Iterator

import pytest

from serving.config import ServingConfig
from tests.unit.serving_helpers import LocalService, play


@pytest.fixture
def page_paths() -> Iterator[dict[str, str]]:
    yield {"/": "text/html", "/app.js": "javascript", "/style.css": "text/css", "/icon.svg": "image/svg+xml"}


def test_the_page_loads_nothing_from_elsewhere(config: ServingConfig, page_paths: dict[str, str]) -> None:
    async def scenario(local: LocalService) -> None:
        for path, kind in page_paths.items():
            response = await local.http.get(path)
            assert response.status_code == 200 and kind in response.headers["content-type"]
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
            text = response.text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
            assert "http://" not in text and "https://" not in text
        index = (await local.http.get("/")).text
        assert "<style" not in index and " style=" not in index and " onclick=" not in index

    play(config, scenario)


def test_openapi_shows_every_call_with_its_body(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        paths = (await local.http.get("/openapi.json")).json()["paths"]
        assert set(paths) == {
            "/v1/tasks", "/v1/tasks/{task_id}", "/v1/tasks/{task_id}/classify", "/v1/tasks/{task_id}/export", "/v1/classify",
            "/v1/embed/image", "/v1/embed/text", "/v1/models", "/healthz", "/metrics",
        }  # fmt: skip
        task = paths["/v1/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(task["properties"]) == {"labels", "templates", "pinned_version"}
        assert "multipart/form-data" in paths["/v1/classify"]["post"]["requestBody"]["content"]
        for path, calls in paths.items():
            for answers in (call["responses"] for call in calls.values()):
                refusals = {status: set(answer["content"]) for status, answer in answers.items() if int(status) >= 400}
                assert "500" in refusals and set().union(*refusals.values()) == {"application/problem+json"}
                assert ("404" in refusals) == ("{task_id}" in path or path == "/metrics")
        assert set(paths["/healthz"]["get"]["responses"]) == {"200", "403", "500", "503"}
        assert "409" in paths["/v1/tasks"]["post"]["responses"]
        assert list(paths["/v1/tasks/{task_id}/export"]["get"]["responses"]["200"]["content"]) == ["application/zip"]
        assert list(paths["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]

    play(config, scenario)
