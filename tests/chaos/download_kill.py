"""SIGKILL of workers and drivers of a download: nothing is lost, nothing doubled, and the output is that of a calm run.

One undisturbed download is the reference.  Another is struck: workers in the middle of a partition, then the driver with
partitions under way; the next driver starts at once, while what the killed one left is still dying, and goes on in the same
folder.  In the end every row of the list must have one final state, and tars and outcomes (without times) must be those of the
reference, byte for byte.  A later round over the failures that may have passed is part of both.  Linux only.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.raw import OUTCOME_SCHEMA, iter_outcomes, read_download_report, read_raw_shard
from tests.chaos._download_driver import WORKER_TITLE, DriverSpec
from tests.chaos._download_origin import BUSY_EVERY, GONE_EVERY, Origin, origin, write_list
from tests.chaos._processes import DIES_WITHIN_S, MARK, DeathWatch, processes_of
from tests.result import chaos_result, environment, measure

POLL_S = 0.02
BEGINS_WITHIN_S = 180
LATENCY_S = 0.05


class Size(NamedTuple):
    rows: int
    rows_in_partition: int
    workers: int
    """SIGKILLs of workers."""
    drivers: int


QUICK, DEFAULT, FULL = Size(240, 20, 2, 1), Size(5000, 100, 20, 5), Size(50_000, 250, 100, 20)


class Struck(NamedTuple):
    workers: int
    drivers: int
    problems: list[str]


@contextmanager
def driving(spec: DriverSpec, folder: Path, mark: str) -> Iterator[subprocess.Popen[bytes]]:
    (folder / "spec.json").write_text(spec.model_dump_json())
    with (folder / "driver.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos._download_driver", str(folder / "spec.json")],
            env={**os.environ, MARK: mark},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def strike(spec: DriverSpec, folder: Path, size: Size, web: Origin, rng: random.Random) -> tuple[Struck, list[DeathWatch]]:
    """Kill workers and drivers of one download, and let the last driver finish it."""
    workers = drivers = 0
    problems: list[str] = []
    watches: list[DeathWatch] = []
    for number in range(size.drivers + 1):
        mark = f"{folder}-{number}"
        with driving(spec, folder, mark) as process:
            left = size.workers - workers
            for _ in range(-(-left // (size.drivers + 1 - number))):
                if not _worker_under_way(process, mark):
                    break
                _wait_for_requests(web, process, rng.randrange(size.rows_in_partition))
                if pid := _worker_under_way(process, mark):
                    workers += _kill(pid, mark)
            if number < size.drivers and _worker_under_way(process, mark):
                _wait_for_requests(web, process, rng.randrange(size.rows_in_partition))
                if process.poll() is None:
                    process.kill()
                    drivers += 1
                process.wait()
                watches.append(DeathWatch(mark))
            elif process.wait():
                problems.append(f"the driver failed: {(folder / 'driver.log').read_text()[-1500:]}")
        print(f"  driver {number + 1}: {workers} workers and {drivers} drivers killed so far", file=sys.stderr, flush=True)
    return Struck(workers, drivers, problems), watches


def _worker_under_way(process: subprocess.Popen[bytes], mark: str) -> int | None:
    """A worker in the middle of a partition; None when the driver has ended."""
    ends = time.monotonic() + BEGINS_WITHIN_S
    while process.poll() is None and time.monotonic() < ends:
        if found := [each.pid for each in processes_of(mark) if each.command.startswith(WORKER_TITLE)]:
            return found[0]
        time.sleep(POLL_S)
    return None


def _wait_for_requests(web: Origin, process: subprocess.Popen[bytes], count: int) -> None:
    """So that some strike while a worker starts, and most in the middle of its requests."""
    wanted, ends = web.requests.total() + count, time.monotonic() + BEGINS_WITHIN_S
    while web.requests.total() < wanted and process.poll() is None and time.monotonic() < ends:
        time.sleep(POLL_S)


def _kill(pid: int, mark: str) -> bool:
    """Whether the worker was still at a partition when it was killed."""
    if not any(each.pid == pid and each.command.startswith(WORKER_TITLE) for each in processes_of(mark)):
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def output_of(raw: Path) -> dict[str, Any]:
    """What a download made, without times: the hash of every tar, and of all outcomes."""
    columns = [name for name in OUTCOME_SCHEMA.names if name != "fetched_at"]
    rows = [row for table in iter_outcomes(str(raw)) for row in table.select(columns).to_pylist()]
    return {
        "tars": {str(path.relative_to(raw)): hashlib.sha256(path.read_bytes()).hexdigest() for path in raw.rglob("*.tar")},
        "outcomes": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "states": Counter((row["uid"], row["state"]) for row in rows),
    }


def accounted(raw: Path, rows: int) -> tuple[int, int]:
    """Rows without a final state or a picture that should be there, and rows or pictures that are there twice."""
    states = output_of(raw)["states"]
    report = read_download_report(str(raw))
    samples = Counter(sample.record["uid"] for shard in report.shards for sample in read_raw_shard(str(raw), shard))
    uids = Counter(uid for uid, _ in states.elements())
    wanted = {uid for uid, state in states if state == "downloaded"}
    lost = len({f"row-{row}" for row in range(rows)} - set(uids)) + len(wanted - set(samples))
    doubled = sum(count > 1 for count in uids.values()) + sum(count > 1 for count in samples.values())
    return lost, doubled + len(set(samples) - wanted)


def repeated_requests(requests: Counter[int], rows: int) -> int:
    """Requests beyond those of one undisturbed pass: one a row, and one more in the second round for those that are busy."""
    busy = sum(row % BUSY_EVERY == 2 and row % GONE_EVERY != 1 for row in range(rows))
    return requests.total() - rows - busy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK.rows} URLs, {QUICK.workers} workers and one driver killed"
    )
    parser.add_argument(
        "--full", action="store_true", help=f"{FULL.rows:,} URLs, {FULL.workers} workers, {FULL.drivers} drivers"
    )
    parser.add_argument("--count", type=int, default=None, help=f"workers to kill; default {DEFAULT.workers}")
    parser.add_argument("--seed", type=int, default=0, help="decides when the kills strike")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL if arguments.full else DEFAULT
    if arguments.count is not None:
        size = size._replace(workers=arguments.count)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the `finally` that end the drivers
    with tempfile.TemporaryDirectory(prefix="download-kill-") as temporary, origin(latency_s=LATENCY_S) as web:
        return run(Path(temporary), web, size, arguments.seed)


def run(temporary: Path, web: Origin, size: Size, seed: int) -> int:
    write_list(temporary / "urls.parquet", rows=size.rows, host=web.host)
    folders = {name: temporary / name for name in ("calm", "struck")}
    specs = {}
    for name, folder in folders.items():
        folder.mkdir()
        output, urls = str(folder / "raw"), str(temporary / "urls.parquet")
        specs[name] = DriverSpec(urls=urls, output=output, host=web.host, rows_in_partition=size.rows_in_partition, rounds=2)
    started = time.monotonic()
    with driving(specs["calm"], folders["calm"], f"{temporary}-calm") as process:
        if process.wait():
            print((folders["calm"] / "driver.log").read_text()[-3000:], file=sys.stderr)
            raise SystemExit("the undisturbed download failed")
    calm_s = time.monotonic() - started
    print(f"  undisturbed download: {calm_s:.0f} s", file=sys.stderr, flush=True)
    calm_repeats = repeated_requests(web.requests, size.rows)
    web.requests.clear()
    started = time.monotonic()
    struck, watches = strike(specs["struck"], folders["struck"], size, web, random.Random(seed))
    struck_s = time.monotonic() - started
    problems = list(struck.problems)
    lost = doubled = 0
    if not problems:
        lost, doubled = accounted(folders["struck"] / "raw", size.rows)
        expected, found = (output_of(folders[name] / "raw") for name in ("calm", "struck"))
        problems += [f"{what} are not those of the calm run" for what in expected if expected[what] != found[what]]
    for watch in watches:
        watch.join()
    problems += [f"alive {DIES_WITHIN_S} s after its driver was killed: {each}" for watch in watches for each in watch.left]
    for problem in problems:
        print(f"  PROBLEM {problem}", file=sys.stderr)
    # a killed worker costs its partition, a killed driver those of both CPUs
    most_repeats = (struck.workers + 2 * struck.drivers) * size.rows_in_partition
    return chaos_result(
        "download_kill",
        injected=struck.workers + struck.drivers,
        lost=lost,
        failed=len(problems),
        measures={
            "workers_killed": measure(struck.workers, goal=(">=", size.workers)),
            "drivers_killed": measure(struck.drivers, goal=(">=", size.drivers)),
            "rows_lost": measure(lost, goal=("<=", 0)),
            "rows_doubled": measure(doubled, goal=("<=", 0)),
            "requests_repeated": measure(
                repeated_requests(web.requests, size.rows) - calm_repeats, goal=("<=", most_repeats), unit="requests"
            ),
            "calm_download": measure(calm_s, unit="s"),
            "struck_download": measure(struck_s, unit="s"),
        },
        rows=size.rows,
        rows_in_partition=size.rows_in_partition,
        seed=seed,
        problems=problems,
        **environment("ray", "img2dataset"),
    )


if __name__ == "__main__":
    sys.exit(main())
