"""When a curation keeps nothing: which rule took most, and the setting to change.

A keep list without samples would only fail further on, where nobody sees the reason.
"""

from collections.abc import Mapping

from data_prep.accounting import describe
from data_prep.raw import DownloadReport
from infra.errors import BadInputError

_CHANGE = {
    "too_small": "filters.min_side",
    "too_big": "filters.max_side",
    "too_elongated": "filters.max_aspect",
    "caption_too_short": "filters.min_caption_characters or filters.min_caption_words",
    "caption_too_long": "filters.max_caption_characters or filters.max_caption_words",
    "language": "language.code or language.min_probability",
    "score_missing": "scores: the file has other uids than these samples",
    "evaluation_leak": "exclude_near or exclude_near_distance: the samples are pictures of the evaluation set",
    "duplicate_perceptual": "dedup.max_hamming_distance",
}
"""By the reason that dropped most; below `curate`."""


class NothingKeptError(BadInputError):
    """Every sample was dropped."""

    def __init__(self, message: str, *, change: str | None) -> None:
        super().__init__(message)
        self.change = change
        """Settings of `CurateConfig`, and what is to be known of them; None where it is the pictures that are to blame."""


def require_some_samples(raw: DownloadReport, raw_uri: str) -> None:
    """Raises BadInputError when there is nothing to curate."""
    if not raw.downloaded:
        told = f" of {raw.requested:,}: {describe(raw.failed)}" if raw.failed else ""
        raise BadInputError(f"there is nothing to curate: {raw_uri} holds no picture{told}. Look at the source")


def require_some_kept(kept: int, dropped_of: Mapping[str, Mapping[str, int]], *, rules_uri: str) -> None:
    """Raises NothingKeptError when nothing is kept.

    Args:
        dropped_of: rule -> reason -> samples that it was the first to drop.
    """
    if kept:
        return
    totals = {rule: sum(dropped.values()) for rule, dropped in dropped_of.items()}
    most = max(totals, key=lambda rule: totals[rule])
    reason = max(dropped_of[most], key=lambda reason: dropped_of[most][reason])
    change = _CHANGE.get(reason) or ("scores" if reason.startswith("score_") else None)
    raise NothingKeptError(
        f"none of {sum(totals.values()):,} samples is kept. The rule {most!r} dropped most, {totals[most]:,}: "
        f"{describe(dropped_of[most])}. What each rule says of every sample: {rules_uri}",
        change=change,
    )
