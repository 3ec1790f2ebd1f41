"""The sum that every step must satisfy: what came in is what went out plus what is accounted for, by reason."""

from collections.abc import Mapping

from infra.errors import DataLossError


def require_all_accounted(step: str, *, seen: int, out: int, lost: Mapping[str, int]) -> None:
    """Raises DataLossError unless `seen` equals `out` plus all of `lost`."""
    if out + sum(lost.values()) != seen:
        raise DataLossError(
            f"{step}: {seen:,} samples in, {out:,} out, {sum(lost.values()):,} lost for a reason ({describe(lost)}): "
            f"{seen - out - sum(lost.values()):+,} are unaccounted for"
        )


def describe(counts: Mapping[str, int]) -> str:
    """Counts by reason, most frequent first: `http_404 12, timeout 3`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered) or "none"
