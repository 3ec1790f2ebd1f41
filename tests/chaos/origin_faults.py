"""Origins that fail in every way, some on purpose: each URL gets the right word, in time, and no worker grows.

Promise: whatever an origin does, the download of a partition ends, says the right reason for every URL, keeps the deadline of
each request within a second, never leaves the addresses it may reach, and takes at most 256 MiB for it.  The real path:
`download_partition`, img2dataset, the opener, in worker processes; names are resolved to loopback at the edge.

python -m tests.chaos.origin_faults [--quick | --count N] [--seed S]
"""

import logging
import multiprocessing
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from data_prep.download_config import DownloadConfig
from data_prep.fetch.opener import HardenedOpener
from data_prep.fetch.policy import FetchPolicy
from data_prep.partition import download_partition
from data_prep.raw import iter_outcomes
from tests.chaos._faulty_origin import DOMAIN, HOST, Kind, Ports, faulty_origin, host_of, kinds
from tests.result import chaos_arguments, chaos_result, environment, measure
from tests.unit.data_helpers import one_partition

URLS_PER_PARTITION = 2000
WORKERS, THREADS = 2, DownloadConfig().threads
TIMEOUT_S = 3.0
MAX_BYTES = 5_000_000
"""Little enough to come in time from an origin that must send it thousands of times, on the same machine."""
MAX_GROWTH_MIB = 256
MAX_LATE_S = 1.0
SLEEP_S = 0.01
UNKNOWN = "unknown"


class Job(NamedTuple):
    """Rows for one worker, in the order they are asked for."""

    rows: list[dict[str, str]]
    policy: FetchPolicy


class Found(NamedTuple):
    reasons: dict[str, str | None]
    """By uid, `KIND-NUMBER`; None for a picture."""
    grown_mib: float
    longest_s: float
    """In the opener, for one URL."""
    longest_of: str
    """Its URL."""
    stalled_s: float
    """The most that a mere sleep of 10 ms took longer meanwhile: what the machine itself was late."""


def strike(
    *, count: int, seed: int, workers: int = WORKERS, timeout_s: float = TIMEOUT_S
) -> tuple[Counter[str], dict[str, Any]]:
    """Ask for `count` URLs, every kind alike; returns how many of each kind, and what was found."""
    with faulty_origin() as (ports, touched):
        named = kinds(f"{HOST}:{ports.canary}")
        per_kind = {name: count // len(named) + (number < count % len(named)) for number, name in enumerate(named)}
        rows = _rows(named, per_kind, ports)
        random.Random(seed).shuffle(rows)
        hosts = tuple(sorted({row["url"].split("/")[2] for row in rows}))
        policy = FetchPolicy(
            allowed_private_hosts=hosts,
            timeout_s=timeout_s,
            connect_timeout_s=timeout_s,
            max_requests_per_host=THREADS,
            max_bytes=MAX_BYTES,
        )
        cuts = [rows[start : start + URLS_PER_PARTITION] for start in range(0, len(rows), URLS_PER_PARTITION)]
        if workers:
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                found = list(pool.map(download, [Job(cut, policy) for cut in cuts]))
        else:
            found = [download(Job(cut, policy)) for cut in cuts]
        reasons = {uid: reason for each in found for uid, reason in each.reasons.items()}
        return Counter(per_kind), {
            "lost": len(rows) - len(reasons),
            "wrong": _wrong(named, reasons),
            "grown_mib": max(each.grown_mib for each in found),
            "late_s": max(each.longest_s for each in found) - timeout_s,
            "latest": max(found, key=lambda each: each.longest_s).longest_of,
            "stalled_s": max(each.stalled_s for each in found),
            "canary": touched(),
        }


def _rows(named: dict[str, Kind], per_kind: dict[str, int], ports: Ports) -> list[dict[str, str]]:
    rows = []
    for name, kind in named.items():
        for number in range(per_kind[name]):
            port = ports.https if kind.scheme == "https" else ports.http
            url = f"{kind.scheme}://{host_of(name, number // kind.urls_per_host)}:{port}/{name}/{number}.jpg"
            rows.append({"uid": f"{name}-{number}", "url": url, "caption": name})
    return rows


def _wrong(named: dict[str, Kind], reasons: dict[str, str | None]) -> dict[str, int]:
    """What was not classified right: `KIND: REASON` and how often."""
    kinds_of = ((uid.rpartition("-")[0], reason) for uid, reason in reasons.items())
    return dict(Counter(f"{kind}: {reason}" for kind, reason in kinds_of if reason not in named[kind].reasons))


def download(job: Job) -> Found:
    """One partition, in this process; measures what it takes."""
    logging.disable(logging.WARNING)
    times: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory(prefix="hyperclip-faults-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", _resolve)
        config = DownloadConfig(threads=THREADS, retries=0, policy=job.policy)
        warm_up = [{"uid": "w", "url": "http://0.0.0.0/", "caption": "w"}]  # what img2dataset imports is not growth
        download_partition(one_partition(Path(folder), warm_up, config), config, output_uri=f"{folder}/warm-up")
        patch.setattr(HardenedOpener, "open", _timed(HardenedOpener.open, times))
        with peak_growth_mib() as grown, longest_stall_s() as stalled:
            output = f"{folder}/raw"
            download_partition(one_partition(Path(folder), job.rows, config), config, output_uri=output)
        outcomes = [row for table in iter_outcomes(output) for row in table.to_pylist()]
    return Found({row["uid"]: row["reason"] for row in outcomes}, grown[0], *max(times), stalled[0])


def _timed(method: Any, times: list[tuple[float, str]]) -> Any:
    def timed(opener: HardenedOpener, request: Any, *arguments: Any, **named: Any) -> Any:
        started = time.monotonic()
        try:
            return method(opener, request, *arguments, **named)
        finally:
            times.append((time.monotonic() - started, request.full_url))

    return timed


def _resolve(host: str, *_: Any, **__: Any) -> Sequence[Any]:
    """Names of the faulty origin are at loopback; others do not exist."""
    if not host.endswith(DOMAIN) or host.startswith(UNKNOWN):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, 0))]


@contextmanager
def peak_growth_mib() -> Iterator[list[float]]:
    """How much larger this process was at its largest than at the start.  Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _memory_mib("VmRSS")
    grown: list[float] = []
    yield grown
    grown.append(_memory_mib("VmHWM") - before)


@contextmanager
def longest_stall_s() -> Iterator[list[float]]:
    """How late the scheduler was at worst, of the machine and of Python together."""
    done, worst = threading.Event(), 0.0

    def watch() -> None:
        nonlocal worst
        while True:
            started = time.monotonic()
            if done.wait(SLEEP_S):
                return
            worst = max(worst, time.monotonic() - started - SLEEP_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    found: list[float] = []
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found.append(worst)


def _memory_mib(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def main() -> int:
    num_kinds = len(kinds(""))
    arguments = chaos_arguments(__doc__ or "", count=1000 * num_kinds, quick_count=20 * num_kinds)
    started = time.monotonic()
    injected, found = strike(count=arguments.count, seed=arguments.seed)
    for problem, times in found["wrong"].items():
        print(f"PROBLEM {problem} ({times} times)", file=sys.stderr)
    return chaos_result(
        "origin_faults",
        injected=injected.total(),
        lost=found["lost"],
        failed=sum(found["wrong"].values()),
        measures={
            "kinds": measure(len(injected)),
            "classified_right": measure(injected.total() - sum(found["wrong"].values()), goal=(">=", injected.total())),
            "most_a_worker_grew": measure(found["grown_mib"], goal=("<=", MAX_GROWTH_MIB), unit="MiB"),
            "latest_past_the_deadline": measure(found["late_s"], goal=("<=", MAX_LATE_S), unit="s"),
            "longest_stall_of_the_machine": measure(found["stalled_s"], unit="s"),
            "connections_to_the_canary": measure(found["canary"], goal=("<=", 0)),
            "rate": measure(injected.total() / (time.monotonic() - started), unit="URLs/s"),
        },
        per_kind=dict(injected),
        wrong=found["wrong"],
        latest=found["latest"],
        timeout_s=TIMEOUT_S,
        max_bytes=MAX_BYTES,
        seed=arguments.seed,
        **environment("img2dataset", "protego"),
    )


if __name__ == "__main__":
    sys.exit(main())
