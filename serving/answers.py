"""What the deployments found, in the form that clients get."""

import time
from collections.abc import Sequence

from serving.messages import Classified, Embedded, Refused
from serving.problems import ProblemError, make_problem
from serving.schemas import EmbeddingAnswer, EmbeddingResult, ImageResult, ModelInfo, Parameters, Timings
from serving.task_record import TaskRecord


def image_result(result: Classified | Refused, record: TaskRecord, model: ModelInfo, parameters: Parameters) -> ImageResult:
    """One picture: its best labels, or why there are none."""
    if isinstance(result, Refused):
        return ImageResult(problem=make_problem(result.status, result.reason, result.detail))
    none_of_these = None
    if model.none_of_these is not None:
        best = result.predictions[0]
        none_of_these = model.none_of_these.probability(best.match, num_labels=len(record.labels), parameters=parameters)
    return ImageResult(
        predictions=result.predictions, none_of_these=none_of_these, batch_size=result.batch_size, timings_ms=result.timings
    )


def embedding_answer(model: ModelInfo, results: Sequence[Embedded | Refused], started: float) -> EmbeddingAnswer:
    """Features of pictures or texts.

    Raises:
        ProblemError: there are none of any.
    """
    refused = [result for result in results if isinstance(result, Refused)]
    if len(refused) == len(results):
        raise ProblemError.of(refused[0])
    return EmbeddingAnswer(
        model_version=model.version,
        dimensions=model.embed_dim,
        results=tuple(
            EmbeddingResult(problem=make_problem(result.status, result.reason, result.detail))
            if isinstance(result, Refused)
            else EmbeddingResult(embedding=tuple(result.features.tolist()))
            for result in results
        ),
        timings_ms=Timings(total=since(started)),
    )


def since(started: float) -> float:
    """Milliseconds since a reading of `time.perf_counter`."""
    return round((time.perf_counter() - started) * 1000, 3)
