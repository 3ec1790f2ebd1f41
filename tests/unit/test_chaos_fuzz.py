"""The judge of `tests.chaos.fuzz` notices each kind of bad answer, and its calls are the same for the same seed."""

import json
from typing import Any

import pytest

from tests.chaos._fuzz_calls import Calls
from tests.chaos._fuzz_http import Answer
from tests.chaos._fuzz_judge import NDJSON, PROBLEM, fault_of, is_shed

GOOD = {"predictions": [{"label": "cat", "score": 0.9, "match": 0.1}], "problem": None}
DOCUMENT = {"type": "urn:hyperclip:problem:x", "title": "t", "status": 422, "detail": "d"}


def answer(status: int, content: Any, *, media_type: str = "application/json", **headers: str) -> Answer:
    lines = content if isinstance(content, list) else [content]
    return Answer(status, {"content-type": media_type, **headers}, "\n".join(map(json.dumps, lines)).encode())


def stream(*results: dict[str, Any], num_pictures: int) -> Answer:
    lines = [{**result, "index": index} for index, result in enumerate(results)]
    return answer(200, [*lines, {"end": True, "num_pictures": num_pictures, "problem": None}], media_type=NDJSON)


@pytest.mark.parametrize(
    "good",
    [
        answer(200, {"results": [GOOD]}),
        answer(200, {"results": [{"predictions": None, "problem": DOCUMENT}]}),
        answer(200, {"results": [{"embedding": [0.6, 0.8], "problem": None}]}),
        answer(422, DOCUMENT, media_type=PROBLEM),
        answer(503, {}, **{"retry-after": "1"}),
        stream(GOOD, num_pictures=1),
    ],
)
def test_answers_that_are_as_promised_pass(good: Answer) -> None:
    assert fault_of(good, num_pictures=1) is None


@pytest.mark.parametrize(
    "bad",
    [
        answer(500, DOCUMENT, media_type=PROBLEM),
        answer(503, DOCUMENT, media_type=PROBLEM),
        answer(422, DOCUMENT),
        answer(400, DOCUMENT, media_type=PROBLEM),
        answer(422, {"status": 422}, media_type=PROBLEM),
        answer(200, {"results": []}),
        answer(200, {"results": [{**GOOD, "predictions": [{"score": float("nan"), "match": 0.1}]}]}),
        answer(200, {"results": [{**GOOD, "predictions": [{"score": None, "match": 0.1}]}]}),
        answer(200, {"results": [{"predictions": None, "problem": {**DOCUMENT, "status": 500}}]}),
        answer(200, {"results": [{"embedding": [0.0, 0.0], "problem": None}]}),
        stream(GOOD, num_pictures=2),
        answer(200, [{**GOOD, "index": 0}], media_type=NDJSON),
    ],
)
def test_answers_that_are_not_are_faults(bad: Answer) -> None:
    assert fault_of(bad, num_pictures=1) is not None


def test_only_what_says_when_to_come_again_counts_as_shed() -> None:
    assert is_shed(answer(429, {}, **{"retry-after": "2"}))
    assert not is_shed(answer(429, {}))


def test_the_same_seed_and_number_give_the_same_call() -> None:
    first, second = Calls(3, "a" * 52), Calls(3, "a" * 52)
    wires = [first.draw(number).on_the_wire() for number in range(50)]
    assert [second.draw(number).on_the_wire() for number in reversed(range(50))] == wires[::-1]
    assert len(set(wires)) == 50
