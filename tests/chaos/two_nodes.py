"""A download over two Ray nodes on this machine: work spreads over both, and one that is killed costs what it had under way.

Both nodes are raylets of one cluster with one CPU each.  First a download runs undisturbed; where each partition ran is seen
from the parents of the workers.  Then another runs, and the raylet of the second node is killed (SIGKILL) while it works.
What scheduling costs is measured with partitions that do nothing.  Linux only.
"""

import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from data_prep.download import download
from data_prep.fan_out import Done, TaskConfig, fan_out_each
from data_prep.raw import DownloadReport
from data_prep.url_list import UrlListConfig
from infra.cluster import WORKER_ENVIRONMENT
from tests.chaos._download_driver import WORKER_TITLE, DriverSpec
from tests.chaos._download_origin import Origin, origin, write_list
from tests.chaos._processes import MARK, processes_of
from tests.chaos.download_kill import accounted, output_of
from tests.result import chaos_arguments, chaos_result, environment, measure

ROWS_IN_PARTITION = 50
PARTITIONS_A_NODE_AT_LEAST = 0.25
"""Of all, that each of two equal nodes must have run."""
POLL_S = 0.02


class Watch(threading.Thread):
    """Which raylet ran which worker at a partition, and how often it was seen."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self._mark, self._ended = mark, threading.Event()
        self.seen: dict[int, Counter[int]] = defaultdict(Counter)
        self.start()

    def run(self) -> None:
        while not self._ended.wait(POLL_S):
            for process in processes_of(self._mark):
                if process.command.startswith(WORKER_TITLE):
                    self.seen[process.parent][process.pid] += 1

    def end(self) -> dict[int, int]:
        """How often each raylet was seen at work."""
        self._ended.set()
        self.join()
        return {raylet: workers.total() for raylet, workers in self.seen.items()}


def _nothing(number: int) -> int:
    return number


def overhead_s(count: int) -> float:
    """Seconds that so many tasks cost which do nothing; the first ones, which start workers, are not counted."""
    config = TaskConfig()
    for _ in fan_out_each(_nothing, ((number,) for number in range(20)), config):
        pass
    started = time.monotonic()
    done = sum(isinstance(one, Done) for one in fan_out_each(_nothing, ((number,) for number in range(count)), config))
    assert done == count
    return time.monotonic() - started


def run(folder: Path, web: Origin, *, rows: int, at_half: Any = None) -> tuple[DownloadReport, float]:
    """One download; `at_half` is called once when half the rows are done."""
    folder.mkdir()
    write_list(folder / "urls.parquet", rows=rows, host=web.host)
    spec = DriverSpec(
        urls=str(folder / "urls.parquet"), output=str(folder / "raw"), host=web.host, rows_in_partition=ROWS_IN_PARTITION
    )
    waiting = [at_half] if at_half else []

    def progress(done: int, total: int, _note: str) -> None:
        if waiting and 2 * done >= total:
            waiting.pop()()

    started = time.monotonic()
    report = download(
        spec.config(), url_list_uri=spec.urls, url_columns=UrlListConfig(), output_uri=spec.output, progress=progress
    )
    return report, time.monotonic() - started


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=1, quick_count=1)
    rows, empty_partitions = (600, 200) if arguments.quick else (3000, 1000)
    logging.disable(logging.WARNING)
    os.environ.update(WORKER_ENVIRONMENT)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    problems: list[str] = []
    killed = lost = doubled = 0
    with tempfile.TemporaryDirectory(prefix="two-nodes-") as temporary, origin(latency_s=0.02) as web:
        mark = os.environ[MARK] = temporary
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            second = cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
            cluster.wait_for_nodes()
            scheduling_s = overhead_s(empty_partitions)
            watch = Watch(mark)
            calm, calm_s = run(Path(temporary) / "calm", web, rows=rows)
            seen = watch.end()

            def kill() -> None:
                nonlocal killed
                time.sleep(random.Random(arguments.seed).random())
                cluster.remove_node(second, allow_graceful=False)
                killed += 1

            struck, struck_s = run(Path(temporary) / "struck", web, rows=rows, at_half=kill)
            lost, doubled = accounted(Path(temporary) / "struck" / "raw", rows)
            expected, found = (output_of(Path(temporary) / name / "raw") for name in ("calm", "struck"))
            problems += [f"{what} are not those of the calm run" for what in expected if expected[what] != found[what]]
            if struck.failed != calm.failed:
                problems.append(f"{struck.failed} failed, {calm.failed} in the calm run")
        finally:
            ray.shutdown()
            cluster.shutdown()
            del os.environ[MARK]
    shares = sorted(count / max(1, sum(seen.values())) for count in seen.values())
    for problem in problems:
        print(f"  PROBLEM {problem}", file=sys.stderr)
    return chaos_result(
        "two_nodes",
        injected=killed,
        lost=lost,
        failed=len(problems),
        measures={
            "nodes_that_worked": measure(len(seen), goal=(">=", 2)),
            "smaller_share_of_a_node": measure(shares[0] if len(shares) > 1 else 0.0, goal=(">=", PARTITIONS_A_NODE_AT_LEAST)),
            "rows_lost": measure(lost, goal=("<=", 0)),
            "rows_doubled": measure(doubled, goal=("<=", 0)),
            "rate_on_two_nodes": measure(rows / calm_s, unit="rows/s"),
            "rate_with_one_killed": measure(rows / struck_s, unit="rows/s"),
            "scheduling_of_1000_partitions": measure(1000 * scheduling_s / empty_partitions, unit="s"),
        },
        rows=rows,
        rows_in_partition=ROWS_IN_PARTITION,
        seed=arguments.seed,
        problems=problems,
        **environment("ray", "img2dataset"),
    )


if __name__ == "__main__":
    sys.exit(main())
