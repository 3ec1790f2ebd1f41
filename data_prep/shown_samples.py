"""A few samples of those kept and of those dropped for each reason, as small pictures to look at."""

import hashlib
import heapq
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import Image

from infra import images, storage

KEPT = "kept"
SHOWN_KEPT, SHOWN_PER_REASON = 24, 8
MAX_REASONS = 40
SIDE = 96
"""Pixels of a small picture's longer side."""
MAX_SHOWN_CHARACTERS = 160
NEVER_SHOWN = ("nsfw", "removed", "damaged_shard")
"""Words in reasons whose pictures nobody asked to see, or that are not known to be what they were: counted, not shown."""
_BYTES_AT_ONCE = 64 << 20
"""Of pictures as they came, read from the raw shards before they are made small."""
_WHITE = (255, 255, 255)


class ShownSample(NamedTuple):
    reason: str
    """`KEPT`, or why it was dropped."""
    uid: str
    caption: str
    """Cut short.  From the web: escape it."""
    width: int | None
    height: int | None
    duplicate_of: str | None
    picture: bytes | None
    """WebP; none where it cannot be decoded."""
    original: bytes | None = None
    """The picture that it is a duplicate of, in the same way."""


class Showing:
    """Draws samples from a stream: those with the smallest hash of their uid, so that the same list shows the same."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[int, str, dict[str, Any]]]] = defaultdict(list)

    def add(self, table: pa.Table) -> None:
        """Rows of a keep list."""
        reasons = [
            KEPT if keep else reason
            for keep, reason in zip(table["keep"].to_pylist(), table["reason"].to_pylist(), strict=True)
        ]
        for place, (uid, reason) in enumerate(zip(table["uid"].to_pylist(), reasons, strict=True)):
            if never_shown(reason) or (reason not in self._found and len(self._found) >= MAX_REASONS):
                continue
            found = self._found[reason]
            rank = -int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8])  # a heap has its smallest in front
            room = SHOWN_KEPT if reason == KEPT else SHOWN_PER_REASON
            if len(found) < room:
                heapq.heappush(found, (rank, uid, table.slice(place, 1).to_pylist()[0]))
            elif rank > found[0][0]:
                heapq.heapreplace(found, (rank, uid, table.slice(place, 1).to_pylist()[0]))

    def originals(self) -> set[str]:
        """uids of what the drawn duplicates are duplicates of."""
        return {row["duplicate_of"] for found in self._found.values() for _, _, row in found if row["duplicate_of"]}

    def samples(self, raw_uri: str, originals: Mapping[str, dict[str, Any]] | None = None) -> list[ShownSample]:
        """Those drawn, kept ones first, then by reason; reads their pictures from the raw shards.

        Args:
            originals: rows of the keep list by their uids; of those that are not there no picture is shown.
        """
        order = sorted(self._found, key=lambda reason: (reason != KEPT, reason))
        rows = [(reason, row) for reason in order for _, _, row in sorted(self._found[reason], key=lambda one: -one[0])]
        beside = dict(originals or {})
        pictures = dict(zip(beside, _small_pictures(beside.values(), raw_uri), strict=True))
        return [
            ShownSample(
                reason=reason,
                uid=row["uid"],
                caption=(row["caption"] or "")[:MAX_SHOWN_CHARACTERS],
                width=row["width"],
                height=row["height"],
                duplicate_of=row["duplicate_of"],
                picture=picture,
                original=pictures.get(row["duplicate_of"]),
            )
            for (reason, row), picture in zip(rows, _small_pictures([row for _, row in rows], raw_uri), strict=True)
        ]


def never_shown(reason: str | None) -> bool:
    return any(word in (reason or "") for word in NEVER_SHOWN)


def _small_pictures(rows: Iterable[dict[str, Any]], raw_uri: str) -> Iterator[bytes | None]:
    for group in _groups(rows):
        ranges = [
            (storage.join(raw_uri, row["shard"]), row["image_offset"], row["image_offset"] + row["image_bytes"])
            for row in group
        ]
        for read in storage.read_ranges(ranges):
            yield None if isinstance(read, Exception) else small_picture(read)


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows whose pictures have at most `_BYTES_AT_ONCE` together; a larger one is by itself."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        if group and size + row["image_bytes"] > _BYTES_AT_ONCE:
            yield group
            group, size = [], 0
        group.append(row)
        size += row["image_bytes"]
    if group:
        yield group


def small_picture(data: bytes) -> bytes | None:
    """A WebP of at most `SIDE` pixels each way, decoded and encoded anew: nothing of the original file is passed on."""
    try:
        pixels = images.flatten(images.decode(data, at_least=(SIDE, SIDE)), background=_WHITE)
    except images.ImageError:
        return None
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()
