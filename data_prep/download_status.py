"""What a download tells of itself while it runs: a line for people, and `RAW/status.json` with every partition under way."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from data_prep.accounting import describe
from data_prep.download_config import DownloadConfig
from data_prep.partition_report import PartitionReport
from data_prep.url_plan import Partition
from infra import storage

STATUS_NAME = "status.json"
BEGUN_FOLDER = "begun"
"""A file for each partition that a worker is at, `00000.1767225600` with the second it began; only while a download runs."""
WRITTEN_EVERY_S = 10.0
REASONS_TOLD = 3


class DownloadStatus:
    """Of one round: rows and partitions done, by reason what failed, and what is under way."""

    def __init__(
        self,
        config: DownloadConfig,
        partitions: list[Partition],
        done_before: Iterable[PartitionReport],
        *,
        output_uri: str,
        progress: Callable[[int, int, str], None],
    ) -> None:
        self._uri, self._progress = storage.join(output_uri, STATUS_NAME), progress
        self._begun_uri = storage.join(output_uri, BEGUN_FOLDER)
        storage.remove(self._begun_uri)  # of a run that was killed
        self._round, self._rounds = (partitions[0].round if partitions else 1), config.rounds
        self._total = sum(partition.num_rows for partition in partitions)
        self._num_partitions = len(partitions)
        self._rows = self._downloaded = self._requested = self._num_done = 0
        self._reasons: Counter[str] = Counter()
        self._handed_out: set[str] = set()
        self._failed: dict[str, str] = {}
        self._started, self._written, self._rows_now = time.monotonic(), 0.0, 0
        rows = {partition.number: partition.num_rows for partition in partitions}
        for report in done_before:
            self._count(report, rows[report.partition])
        self._show()

    def hand_out(self, partition: Partition) -> None:
        """It is Ray's from now on; a worker begins it when there is room."""
        self._handed_out.add(partition.name)
        self._write()

    def done(self, partition: Partition, report: PartitionReport) -> None:
        self._handed_out.discard(partition.name)
        self._count(report, partition.num_rows)
        self._rows_now += report.requested
        self._show()
        self._write()

    def failed(self, partition: Partition, error: Exception) -> None:
        self._handed_out.discard(partition.name)
        self._failed[partition.name] = f"{type(error).__name__}: {error}"
        self._write()

    def end(self) -> None:
        self._write(at_once=True)
        storage.remove(self._begun_uri)

    def note(self) -> str:
        """`pictures, 1,234/s, 71 % arrived; http_404 12, dns 3`."""
        parts = ["pictures" if self._round == 1 else f"pictures, round {self._round} of {self._rounds}"]
        if self._rows_now:
            parts.append(f"{self._rows_now / max(1e-3, time.monotonic() - self._started):,.0f}/s")
        if self._requested:
            parts.append(f"{self._downloaded / self._requested:.0%} arrived")
        told = ", ".join(parts)
        return f"{told}; {describe(dict(self._reasons.most_common(REASONS_TOLD)))}" if self._reasons else told

    def _count(self, report: PartitionReport, rows: int) -> None:
        self._rows += rows
        self._requested += report.requested
        self._downloaded += report.downloaded
        self._num_done += 1
        self._reasons.update(report.failed)

    def _show(self) -> None:
        self._progress(self._rows, self._total, self.note())

    def _write(self, *, at_once: bool = False) -> None:
        if not at_once and time.monotonic() - self._written < WRITTEN_EVERY_S:
            return
        self._written = time.monotonic()
        running = self._running()
        status = {
            "round": self._round,
            "rounds": self._rounds,
            "partitions": self._num_partitions,
            "done": self._num_done,
            "running": {name: f"{max(0, time.time() - since):.0f} s" for name, since in running.items()},
            "queued": sorted(self._handed_out - running.keys()),
            "failed": self._failed,
            "rows": self._rows,
            "downloaded": self._downloaded,
            "reasons": dict(self._reasons.most_common()),
        }
        storage.write_atomic(self._uri, json.dumps(status, indent=1))

    def _running(self) -> dict[str, int]:
        """Second at which each began, by what the workers say: Ray takes more tasks than it has CPUs for."""
        marks = sorted(uri.rpartition("/")[2].split(".") for uri in storage.list_files(self._begun_uri))
        return {name: int(since) for name, since in marks if name in self._handed_out}  # the last of several tries


@contextmanager
def marked_as_begun(partition: Partition, output_uri: str) -> Iterator[None]:
    """Lets the status know that a worker is at this partition; a killed worker leaves the mark to the end of the round."""
    mark = storage.join(output_uri, BEGUN_FOLDER, f"{partition.name}.{time.time():.0f}")
    storage.write_whole(mark, b"")
    try:
        yield
    finally:
        storage.remove(mark)
