"""How near the download comes to what decoding, resizing and encoding alone allow, and where the rest of the time goes.

The bound: the resizer alone on pictures in memory, in as many processes as there are download tasks, and no network.
Ours: the same pictures from a web server on loopback (5 ms), which takes a share of the two cores.  The profile looks at every
thread of one task a hundred times a second, and adds the CPU time it has taken since to the part whose code it is in.

    python -m tests.benchmarks.download_bound
"""

import multiprocessing
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

from data_prep.download_config import DownloadConfig
from data_prep.fetch.policy import FetchPolicy
from data_prep.partition import download_partition
from data_prep.url_list import UrlListConfig
from data_prep.url_plan import plan_url_list
from tests.benchmarks._download_sides import PROCESSES, RESIZE, ROWS_PER_SHARD, TIMEOUT_S, run_side, write_urls
from tests.benchmarks._picture_origin import jpegs, picture_origin
from tests.result import benchmark_arguments, benchmark_result, environment, measure, spread

LATENCY_MS, THREADS = 5, 32
SAMPLE_EVERY_S = 0.01
PLACES = (  # the innermost frame that is in one of these says where a thread is
    ("data_prep/resizer", "decode, resize, encode"),
    ("img2dataset/", "img2dataset itself"),
    ("infra/images", "header check"),
    ("data_prep/fetch/connections", "requests"),
    ("data_prep/fetch/web", "requests"),
    ("data_prep/fetch/addresses", "requests"),
    ("data_prep/fetch/host_turns", "turns at the host"),
    ("data_prep/fetch/robots", "robots.txt"),
    ("data_prep/fetch/opener", "the opener itself"),
    ("data_prep/outcomes", "outcomes"),
    ("data_prep/sorted_shards", "write the tar"),
    ("data_prep/", "the rest of ours"),
)


def main() -> int:
    arguments = benchmark_arguments(__doc__.splitlines()[0])
    count, rounds = (400, 1) if arguments.quick else (10_000, 2)
    bound, ours = [], []
    with (
        tempfile.TemporaryDirectory(prefix="hyperclip-bound-") as temporary,
        picture_origin(latency_ms=LATENCY_MS, faulty=False) as origin,
    ):
        urls = Path(temporary) / "urls.parquet"
        write_urls(urls, origin=origin, count=count)
        for number in range(rounds):
            bound.append(bare_rate(count))
            result = run_side("hyperclip", urls, Path(temporary) / f"out{number}", origin=origin, threads=THREADS)
            ours.append(result.downloaded / result.seconds)
            print(f"  round {number + 1}: bare {bound[-1]:.0f} a second, download {ours[-1]:.0f}", file=sys.stderr, flush=True)
        profile = profiled(Path(temporary) / "profile", origin=origin, count=min(count, 2_000))
    share = spread(ours)["median"] / spread(bound)["median"]
    return benchmark_result(
        "download_bound",
        ratio=share,
        goal=None,
        measures={
            "bare_samples_per_s": measure(spread(bound)["median"], unit="samples/s"),
            "download_samples_per_s": measure(spread(ours)["median"], unit="samples/s"),
        },
        spread={"bare": spread(bound), "download": spread(ours)},
        profile=profile,
        sizes={"urls": count, "processes": PROCESSES, "threads": THREADS, "latency_ms": LATENCY_MS},
        **environment("img2dataset", "ray", "pillow"),
    )


def bare_rate(count: int) -> float:
    """Pictures a second that the resizer alone gets through in as many processes as there are tasks."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(_resize, [8] * PROCESSES)  # imports
        started = time.perf_counter()
        pool.map(_resize, [count // PROCESSES] * PROCESSES)
        return count / (time.perf_counter() - started)


def _resize(count: int) -> None:
    import io

    from data_prep.resizer import Resizer

    resizer = Resizer(RESIZE)
    pictures = _pictures()
    for number in range(count):
        *_, error = resizer(io.BytesIO(pictures[number % len(pictures)]))
        assert error is None, error


_MADE: list[bytes] = []


def _pictures() -> list[bytes]:
    if not _MADE:
        _MADE.extend(jpegs())
    return _MADE


def profiled(output: Path, *, origin: str, count: int) -> dict[str, float]:
    """Share of the CPU time of one task, in this process, by whose code they are in."""
    config = DownloadConfig(
        resize=RESIZE,
        threads=THREADS,
        retries=0,
        samples_per_shard=ROWS_PER_SHARD,
        policy=FetchPolicy(timeout_s=TIMEOUT_S, max_requests_per_host=1000, allowed_private_hosts=(origin,)),
    )
    found: dict[str, float] = defaultdict(float)
    ended = threading.Event()

    def watch() -> None:
        own, before = threading.get_ident(), defaultdict(float)
        while not ended.wait(SAMPLE_EVERY_S):
            frames = sys._current_frames()
            for thread in threading.enumerate():
                if (frame := frames.get(thread.ident or 0)) and thread.ident != own:
                    taken = _cpu_seconds(thread.native_id)
                    found[_place(frame)] += max(taken - before[thread.native_id], 0.0)
                    before[thread.native_id] = taken

    watcher = threading.Thread(target=watch, daemon=True)
    urls = output.with_suffix(".parquet")
    write_urls(urls, origin=origin, count=count)
    watcher.start()
    cut = {"samples_per_partition": config.samples_per_partition, "samples_per_shard": config.samples_per_shard}
    for partition in plan_url_list(str(urls), UrlListConfig(), output_uri=str(output), **cut).partitions(str(output)):
        download_partition(partition, config, output_uri=str(output))
    ended.set()
    watcher.join()
    total = sum(found.values())
    return {place: round(seconds / total, 3) for place, seconds in sorted(found.items(), key=lambda item: -item[1])}


def _cpu_seconds(native_id: int | None) -> float:
    try:
        return int(Path(f"/proc/self/task/{native_id}/schedstat").read_text().split()[0]) / 1e9
    except OSError:  # it has just ended
        return 0.0


def _place(frame: FrameType) -> str:
    inner: FrameType | None = frame
    while inner is not None:
        for part, place in PLACES:
            if part in inner.f_code.co_filename:
                return place
        inner = inner.f_back
    return "Python and the rest"


if __name__ == "__main__":
    sys.exit(main())
