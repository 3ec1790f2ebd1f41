"""Counts over streams of any length in bounded memory: by time, by name, and in bins."""

from collections import Counter
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from infra.config import StrictModel

MAX_TIME_BINS = 240
MAX_NAMES = 100_000


class Rates(StrictModel):
    """What was downloaded and what failed, over time."""

    first: int | None = None
    """Start of the first bin, seconds since 1970; none where nothing was fetched."""
    bin_s: PositiveInt = 1
    downloaded: list[NonNegativeInt] = Field(default_factory=list)
    failed: list[NonNegativeInt] = Field(default_factory=list)


class TimeTally:
    """Events per bin; bins grow twice as wide whenever there would be more than `MAX_TIME_BINS`."""

    def __init__(self) -> None:
        self._bin_s = 1
        self._counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}

    def add(self, seconds: np.ndarray, *, succeeded: bool) -> None:
        """Args:
        seconds: (N,) whole seconds since 1970.
        """
        places, counts = np.unique(seconds // self._bin_s, return_counts=True)
        self._counts[succeeded].update(dict(zip(places.tolist(), counts.tolist(), strict=True)))
        while self._span() > MAX_TIME_BINS:
            self._bin_s *= 2
            for succeeded_, found in self._counts.items():
                wider: Counter[int] = Counter()
                for place, count in found.items():
                    wider[place // 2] += count
                self._counts[succeeded_] = wider

    def rates(self) -> Rates:
        places = [*self._counts[True], *self._counts[False]]
        if not places:
            return Rates()
        span = range(min(places), max(places) + 1)
        downloaded, failed = ([self._counts[kind][place] for place in span] for kind in (True, False))
        return Rates(first=span.start * self._bin_s, bin_s=self._bin_s, downloaded=downloaded, failed=failed)

    def _span(self) -> int:
        places = [*self._counts[True], *self._counts[False]]
        return max(places) - min(places) + 1 if places else 0


class NamedCount(StrictModel):
    name: str
    seen: NonNegativeInt
    good: NonNegativeInt
    """Downloaded, or kept."""


class NameTally:
    """Seen and good by name; beyond `MAX_NAMES` names the rarest half is forgotten, and then counts are lower bounds."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._good: Counter[str] = Counter()
        self.num_forgotten = 0
        """Samples whose name is not counted any more."""

    def add(self, seen: Counter[str], good: Counter[str]) -> None:
        self._seen.update(seen)
        self._good.update(good)
        if len(self._seen) > MAX_NAMES:
            stays = dict(self._seen.most_common(MAX_NAMES // 2))
            self.num_forgotten += self._seen.total() - sum(stays.values())
            self._seen = Counter(stays)
            self._good = Counter({name: count for name, count in self._good.items() if name in stays})

    @property
    def num_names(self) -> int:
        return len(self._seen)

    def top(self, count: int) -> list[NamedCount]:
        """The most frequent, those with the same count by name."""
        ordered = sorted(self._seen.items(), key=lambda entry: (-entry[1], entry[0]))[:count]
        return [NamedCount(name=name, seen=seen, good=self._good[name]) for name, seen in ordered]


class Histogram(StrictModel):
    """Kept and dropped samples by a measure; the last bin has no upper edge, the first none below."""

    edges: list[float]
    """Of bins, n + 1."""
    kept: list[NonNegativeInt]
    dropped: list[NonNegativeInt]


class HistogramTally:
    def __init__(self, edges: Any) -> None:
        self._edges = np.asarray(edges, dtype=np.float64)
        self._counts = {keep: np.zeros(len(self._edges) - 1, dtype=np.int64) for keep in (True, False)}

    def add(self, values: np.ndarray, keep: np.ndarray) -> None:
        """Args:
        values: (N,); NaN is not counted.
        keep: (N,) bool.
        """
        for kept, counts in self._counts.items():
            chosen = values[(keep == kept) & ~np.isnan(values)]
            inside = np.clip(chosen, self._edges[0], np.nextafter(self._edges[-1], 0))
            counts += np.histogram(inside, self._edges)[0]

    def histogram(self) -> Histogram:
        return Histogram(edges=self._edges.tolist(), kept=self._counts[True].tolist(), dropped=self._counts[False].tolist())
