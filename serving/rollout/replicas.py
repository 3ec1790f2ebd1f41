"""Which replicas there are, by what they report, and what all of them hold."""

from collections import Counter
from collections.abc import Callable

from serving.config import RolloutConfig
from serving.model_source import ServedModel
from serving.rollout.plan import PARTS, Report

ALIVE_INTERVALS = 5
"""A replica that has said nothing for so many exchanges is gone."""
MIN_ALIVE_S = 3.0


class Replicas:
    """The last word of each."""

    def __init__(self, config: RolloutConfig, clock: Callable[[], float]) -> None:
        self.deaths: Counter[str] = Counter()
        """Replicas that have gone while they loaded a model, by its digest."""
        self._alive_s = max(MIN_ALIVE_S, ALIVE_INTERVALS * config.sync_interval_s)
        self._clock = clock
        self._started = clock()
        self._reports: dict[str, tuple[Report, float]] = {}

    def note(self, report: Report) -> None:
        self._reports[report.replica] = (report, self._clock())

    def live(self) -> list[Report]:
        """Of each that is there; those that have gone are taken off."""
        for replica, (report, at) in list(self._reports.items()):
            if self._clock() - at > self._alive_s:
                del self._reports[replica]
                self.deaths.update(report.loading)
        return [report for report, _ in self._reports.values()]

    def all_hold(self, served: ServedModel, live: list[Report]) -> bool:
        if self._clock() - self._started < self._alive_s:  # those that were there before this process have not all reported
            return False
        return {report.part for report in live} == PARTS and all(holds(report, served) for report in live)


def holds(report: Report, served: ServedModel) -> bool:
    """Whether a replica has loaded a model."""
    return any(info.digest == served.digest for info in report.loaded)
