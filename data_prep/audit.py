"""Expected against done: every uid of the URL list has exactly one outcome, or the step fails."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from infra.config import StrictModel
from infra.errors import DataLossError


class AuditReport(StrictModel):
    expected: int
    downloaded: int
    failed: dict[str, int]
    formats: dict[str, int]
    """Downloaded pictures by true format, read from their bytes."""
    bytes: int


def audit(expected: pa.Table, outcomes: pa.Table) -> AuditReport:
    """Hold the outcomes (`raw.OUTCOME_SCHEMA`) of a download against its URL list.

    Raises:
        DataLossError: a uid has no outcome or several, or an outcome belongs to no uid; the first are named.
    """
    wanted = set(expected["uid"].to_pylist())
    seen = Counter(outcomes["uid"].to_pylist())
    problems = {
        "missing": sorted(uid for uid in wanted if uid not in seen),
        "doubled": sorted(uid for uid, count in seen.items() if count > 1),
        "never asked for": sorted(uid for uid in seen if uid not in wanted),
        "neither downloaded nor failed for a reason": _undecided(outcomes),
    }
    if any(problems.values()):
        named = "; ".join(f"{len(uids):,} {what}: {', '.join(uids[:5])}" for what, uids in problems.items() if uids)
        raise DataLossError(f"the download does not account for every row of the list: {named}")
    downloaded = outcomes.filter(pc.equal(outcomes["state"], "downloaded"))
    failed = outcomes.filter(pc.equal(outcomes["state"], "failed"))
    return AuditReport(
        expected=len(wanted),
        downloaded=downloaded.num_rows,
        failed=dict(sorted(Counter(failed["reason"].to_pylist()).items())),
        formats=dict(sorted(Counter(downloaded["format"].to_pylist()).items())),
        bytes=pc.sum(downloaded["bytes"]).as_py() or 0,
    )


def _undecided(outcomes: pa.Table) -> list[str]:
    states = zip(*(outcomes[name].to_pylist() for name in ("uid", "state", "reason", "format")), strict=True)
    return sorted(
        uid
        for uid, state, reason, image_format in states
        if not ((state == "downloaded" and image_format and not reason) or (state == "failed" and reason))
    )
