"""What `fuzz` holds an answer to: no error of ours, problems as documents, and whole results where there are some."""

import json
import math
from typing import Any

from tests.chaos._fuzz_http import Answer

PROBLEM = "application/problem+json"
NDJSON = "application/x-ndjson"
BUSY = (429, 503)


def is_shed(answer: Answer) -> bool:
    """Refused for a while, as a service may under load."""
    return answer.status in BUSY and answer.headers.get("retry-after", "").isdecimal()


def fault_of(answer: Answer, *, has_body: bool = True, num_pictures: int = 0) -> str | None:
    """What is wrong with an answer to whatever was asked; None where nothing is.

    Args:
        has_body: False after HEAD.
        num_pictures: results that a good answer must have; 0 where that is not known.
    """
    if is_shed(answer):
        return None
    if answer.status >= 500:
        return f"answered {answer.status}"
    if not has_body or answer.status in (204, 307):
        return None
    try:
        if answer.status >= 400:
            return _fault_of_problem(answer)
        if answer.media_type == NDJSON:
            return _fault_of_stream([json.loads(line) for line in answer.body.splitlines()], num_pictures)
        if answer.media_type == "application/json":
            return _fault_of_json(answer.json(), num_pictures)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"an answer of another form: {error!r}"
    return None


def _fault_of_problem(answer: Answer) -> str | None:
    if answer.media_type != PROBLEM:
        return f"a problem as {answer.media_type!r}"
    problem = answer.json()
    if problem["status"] != answer.status or not (problem["title"] and problem["detail"] and problem["type"]):
        return f"status {problem['status']} in the problem, {answer.status} over it, or nothing said"
    return None


def _fault_of_stream(lines: list[dict[str, Any]], num_pictures: int) -> str | None:
    *results, end = lines
    if end["end"] is not True or end["num_pictures"] != len(results):
        return "a stream that does not end as it should"
    if sorted(line["index"] for line in results) != list(range(len(results))):
        return "a stream that leaves out pictures"
    if end["problem"] is not None and end["problem"]["status"] >= 500:
        return f"a stream that ends with {end['problem']['status']}"
    return _fault_of_json({"results": results}, num_pictures)


def _fault_of_json(content: Any, num_pictures: int) -> str | None:
    results = content.get("results")
    if results is None:
        return None
    if num_pictures and len(results) != num_pictures:
        return f"{len(results)} results for {num_pictures} pictures"
    return next(filter(None, map(_fault_of_result, results)), None)


def _fault_of_result(result: dict[str, Any]) -> str | None:
    if (problem := result.get("problem")) is not None:
        return f"a picture with {problem['status']}" if problem["status"] >= 500 and problem["status"] not in BUSY else None
    if (embedding := result.get("embedding")) is not None:
        return (
            None if math.isclose(sum(value * value for value in embedding), 1, abs_tol=1e-3) else "features of another length"
        )
    if not all(0 <= one["score"] <= 1 and 0 <= one["match"] <= 1 for one in result["predictions"]):  # false for NaN too
        return "a score that is none"
    return None
