"""Classifying files with a running service: they are read as they are sent, and answered in their order."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from infra.errors import BadInputError, HyperClipError
from pipeline.classify_command import API_KEY
from pipeline.picture_files import Classified, Prediction, Unreadable, read_bytes
from serving.client import ServiceError, ServingClient
from serving.schemas import StreamLine


def classify_with_service(
    client: ServingClient, labels: Sequence[str], templates: Sequence[str] | None, paths: Sequence[Path], *, top_k: int
) -> Iterator[Classified | Unreadable]:
    """One result per file, in their order.

    Raises:
        BadInputError: the service refuses the labels or the templates.
        HyperClipError: the service cannot be reached, or fails.
    """
    places: list[int] = []  # of the pictures that were sent
    ready: dict[int, Classified | Unreadable] = {}
    waited_for = 0

    def sent() -> Iterator[bytes]:
        for place, path in enumerate(paths):
            data = read_bytes(path)
            if isinstance(data, Unreadable):
                ready[place] = data
            else:
                places.append(place)
                yield data

    try:
        task = client.create_task(labels, templates=templates)
        for line in client.classify_many(task.task_id, sent(), top_k=top_k):
            place = places[line.index]
            ready[place] = _result(paths[place], line)
            while waited_for in ready:
                yield ready.pop(waited_for)
                waited_for += 1
    except ServiceError as error:
        if error.status == 401:
            raise HyperClipError(f"{error}; the key comes from the environment variable {API_KEY}") from error
        refused = error.status is not None and 400 <= error.status < 500 and error.status not in (401, 403, 429)
        raise (BadInputError if refused else HyperClipError)(str(error)) from error
    while waited_for in ready:  # files at the end that could not be read
        yield ready.pop(waited_for)
        waited_for += 1


def _result(path: Path, line: StreamLine) -> Classified | Unreadable:
    if line.predictions is None:
        return Unreadable(path, line.problem.detail if line.problem else "the service gave no answer for it")
    predictions = tuple(Prediction(found.label, found.score, found.match) for found in line.predictions)
    return Classified(path, predictions, line.none_of_these)
