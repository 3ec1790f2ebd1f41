"""A small typed client of the service."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import ValidationError

from infra.errors import HyperClipError
from serving.schemas import (
    ClassifyAnswer,
    EmbeddingAnswer,
    Health,
    ModelInfo,
    ModelList,
    Parameters,
    Problem,
    TaskCreated,
    TaskInfo,
    WireModel,
)

Answer = TypeVar("Answer", bound=WireModel)


class ServiceError(HyperClipError):
    """The service refused or failed; `problem` is what it said, None when it could not be reached or understood."""

    def __init__(self, message: str, *, problem: Problem | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.problem = problem
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int | None:
        return self.problem.status if self.problem else None


class ServingClient:
    """Calls of one service.  Use it as a context manager, or `close` it."""

    def __init__(self, base_url: str, *, timeout_s: float = 60, transport: httpx.BaseTransport | None = None) -> None:
        # no proxy from the environment: the service is usually on loopback
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, transport=transport, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def create_task(
        self, labels: Sequence[str], *, templates: Sequence[str] | None = None, pinned_version: str | None = None
    ) -> TaskCreated:
        """Name the classes; the same names again give the same task."""
        body: dict[str, Any] = {"labels": list(labels)}
        if templates is not None:
            body["templates"] = list(templates)
        if pinned_version is not None:
            body["pinned_version"] = pinned_version
        return self._call(TaskCreated, "POST", "/v1/tasks", json=body)

    def task(self, task_id: str) -> TaskInfo:
        return self._call(TaskInfo, "GET", f"/v1/tasks/{task_id}")

    def delete_task(self, task_id: str) -> None:
        self._send("DELETE", f"/v1/tasks/{task_id}")

    def classify(
        self, task_id: str, images: Sequence[bytes], *, top_k: int = 5, parameters: Parameters = "specialized"
    ) -> ClassifyAnswer:
        """Scores of pictures (JPEG, PNG or WebP bytes)."""
        query = {"top_k": top_k, "parameters": parameters}
        return self._call(ClassifyAnswer, "POST", f"/v1/tasks/{task_id}/classify", params=query, files=_files(images))

    def classify_at_once(self, labels: Sequence[str], images: Sequence[bytes], *, top_k: int = 5) -> ClassifyAnswer:
        """The same with the labels in the call."""
        form = {"labels": list(labels), "top_k": str(top_k)}
        return self._call(ClassifyAnswer, "POST", "/v1/classify", data=form, files=_files(images))

    def embed_images(self, images: Sequence[bytes]) -> EmbeddingAnswer:
        """Neutral features of pictures."""
        return self._call(EmbeddingAnswer, "POST", "/v1/embed/image", files=_files(images))

    def embed_texts(self, texts: Sequence[str]) -> EmbeddingAnswer:
        return self._call(EmbeddingAnswer, "POST", "/v1/embed/text", json={"texts": list(texts)})

    def export(self, task_id: str) -> bytes:
        """The edge package, a zip file."""
        return self._send("GET", f"/v1/tasks/{task_id}/export").content

    def models(self) -> tuple[ModelInfo, ...]:
        return self._call(ModelList, "GET", "/v1/models").models

    def health(self) -> Health:
        return self._call(Health, "GET", "/healthz")

    def _call(self, answer: type[Answer], method: str, path: str, **request: Any) -> Answer:
        response = self._send(method, path, **request)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise ServiceError(f"{method} {path} gave an answer that this client does not understand: {error}") from error

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise ServiceError(f"{method} {self._http.base_url}{path} failed: {error!r}") from error
        if response.is_success:
            return response
        problem = _problem(response)
        said = problem.detail if problem else response.text[:200]
        retry_after = response.headers.get("retry-after", "")
        raise ServiceError(
            f"{method} {path}: {response.status_code} {said}",
            problem=problem,
            retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
        )


def _problem(response: httpx.Response) -> Problem | None:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def _files(images: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{place}", image, "application/octet-stream")) for place, image in enumerate(images)]
