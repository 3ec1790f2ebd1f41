"""Expected against done: nothing vanishes, nothing is counted twice."""

from typing import Any

import pyarrow as pa
import pytest

from data_prep.accounting import require_all_accounted
from data_prep.audit import audit
from data_prep.raw import OUTCOME_SCHEMA
from infra.errors import DataLossError

GOOD = {"state": "downloaded", "format": "webp", "bytes": 10}
GONE = {"state": "failed", "reason": "http_404"}


def run(expected: list[str], outcomes: list[dict[str, Any]]) -> Any:
    return audit(pa.table({"uid": expected}), pa.Table.from_pylist(outcomes, schema=OUTCOME_SCHEMA))


def test_counts_by_reason_and_format() -> None:
    report = run(["a", "b", "c"], [{"uid": "a"} | GOOD, {"uid": "b"} | GONE, {"uid": "c"} | GOOD | {"format": "png"}])
    assert (report.downloaded, report.failed, report.formats, report.bytes) == (2, {"http_404": 1}, {"png": 1, "webp": 1}, 20)


@pytest.mark.parametrize(
    ("outcomes", "problem"),
    [
        ([{"uid": "a"} | GOOD], "1 missing: b"),
        ([{"uid": "a"} | GOOD, {"uid": "b"} | GONE, {"uid": "b"} | GOOD], "1 doubled: b"),
        ([{"uid": "a"} | GOOD, {"uid": "b"} | GONE, {"uid": "x"} | GOOD], "1 never asked for: x"),
        ([{"uid": "a"} | GOOD, {"uid": "b", "state": "failed"}], "neither downloaded nor failed for a reason: b"),
        ([{"uid": "a"} | GOOD, {"uid": "b", "state": "downloaded"}], "neither downloaded nor failed for a reason: b"),
        ([{"uid": "a"} | GOOD, {"uid": "b"} | GOOD | {"reason": "timeout"}], "neither downloaded nor failed"),
    ],
)
def test_whatever_does_not_add_up_fails_by_name(outcomes: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(DataLossError, match=problem):
        run(["a", "b"], outcomes)


def test_a_sum_that_is_off_names_the_difference() -> None:
    require_all_accounted("step", seen=5, out=3, lost={"x": 1, "y": 1})
    with pytest.raises(DataLossError, match=r"step: 5 samples in, 3 out, 1 lost for a reason \(x 1\): \+1 are unaccounted for"):
        require_all_accounted("step", seen=5, out=3, lost={"x": 1})
