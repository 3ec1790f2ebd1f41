"""A small typed client of the service: one call a method, and `classify_many` for any number of pictures."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    StreamEnd,
    StreamLine,
    TaskCreated,
    TaskInfo,
    VersionStatus,
    WireModel,
)

Answer = TypeVar("Answer", bound=WireModel)

NDJSON = "application/x-ndjson"
BUSY = (429, 503)
"""What is worth another try."""
PICTURES_PER_CALL, BYTES_PER_CALL = 256, 16 * 2**20
"""Of one call of `classify_many`: what it holds in memory."""


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
    """Calls of one service.  Use it as a context manager, or `close` it.  Not for several threads at once."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60,
        retries: int = 0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Args:
        api_key: where the service asks for one.
        timeout_s: of connecting, and of every wait for bytes.
        retries: how often to try again what the service is too busy for (429, 503), each time as late as it says.
        """
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        # no proxy from the environment: the service is usually on loopback
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, transport=transport, trust_env=False, headers=headers)
        self._retries = retries

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

    def classify_many(
        self, task_id: str, images: Iterable[bytes], *, top_k: int = 5, parameters: Parameters = "specialized"
    ) -> Iterator[StreamLine]:
        """Any number of pictures, each answered as soon as it is ready; `index` says which one it is.

        Pictures are taken from `images` only as they are sent, so a generator that reads files keeps few of them in memory.
        One that cannot be read has a problem in its line.  Leave the loop, and the service stops.

        Raises:
            ServiceError: the call failed; the answers before stand.
        """
        first = 0
        for part in _parts(images):
            query: dict[str, Any] = {"top_k": top_k, "parameters": parameters}
            with self._answering(
                "POST", f"/v1/tasks/{task_id}/classify", params=query, files=_files(part), stream=True
            ) as response:
                for line in _lines(response):
                    yield line if not first else line.rebuilt(index=first + line.index)
            first += len(part)

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
        """Those that can be used, the champion first."""
        return self._call(ModelList, "GET", "/v1/models").models

    def versions(self) -> tuple[VersionStatus, ...]:
        """How far each version is, also those being loaded and those refused."""
        return self._call(ModelList, "GET", "/v1/models").versions

    def health(self) -> Health:
        return self._call(Health, "GET", "/healthz")

    def _call(self, answer: type[Answer], method: str, path: str, **request: Any) -> Answer:
        response = self._send(method, path, **request)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise ServiceError(f"{method} {path} gave an answer that this client does not understand: {error}") from error

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        with self._answering(method, path, **request) as response:
            return response

    @contextmanager
    def _answering(self, method: str, path: str, *, stream: bool = False, **request: Any) -> Iterator[httpx.Response]:
        """A successful response, read already unless it is to be streamed.

        Raises:
            ServiceError: it is none, after as many tries as are allowed.
        """
        try:
            headers = {"accept": NDJSON} if stream else None
            for left in range(self._retries, -1, -1):
                with self._http.stream(method, path, headers=headers, **request) as response:
                    if response.is_success:
                        if not stream:
                            response.read()
                        yield response
                        return
                    response.read()
                error = _refused(method, path, response)
                if not left or response.status_code not in BUSY or error.retry_after_s is None:
                    raise error
                time.sleep(error.retry_after_s)
        except httpx.ConnectError as error:
            url = str(self._http.base_url).rstrip("/")
            raise ServiceError(f"no service answers at {url}; is it running, and is that its address?") from error
        except httpx.HTTPError as error:
            raise ServiceError(f"{method} {self._http.base_url}{path} failed: {error!r}") from error


def _refused(method: str, path: str, response: httpx.Response) -> ServiceError:
    problem = _problem(response)
    said = problem.detail if problem else response.text[:200]
    retry_after = response.headers.get("retry-after", "")
    return ServiceError(
        f"{method} {path}: {response.status_code} {said}",
        problem=problem,
        retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
    )


def _parts(images: Iterable[bytes]) -> Iterator[list[bytes]]:
    """As many as go into one call."""
    part: list[bytes] = []
    size = 0
    for image in images:
        if part and (len(part) == PICTURES_PER_CALL or size + len(image) > BYTES_PER_CALL):
            yield part
            part, size = [], 0
        part.append(image)
        size += len(image)
    if part:
        yield part


def _lines(response: httpx.Response) -> Iterator[StreamLine]:
    """Raises ServiceError when the answer breaks off, or ends with a problem."""
    for text in _whole_lines(response.iter_bytes()):
        try:
            if text.startswith(b'{"end":'):
                if problem := StreamEnd.model_validate_json(text).problem:
                    raise ServiceError(f"{response.url.path}: {problem.detail}", problem=problem)
                return
            yield StreamLine.model_validate_json(text)
        except ValidationError as error:
            raise ServiceError(f"{response.url.path} gave a line that this client does not understand: {error}") from error
    raise ServiceError(f"{response.url.path}: the answer breaks off")


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Only a line feed ends a line: httpx would also split inside a label that holds another line end of Unicode's."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


def _problem(response: httpx.Response) -> Problem | None:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def _files(images: Sequence[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{place}", image, "application/octet-stream")) for place, image in enumerate(images)]
