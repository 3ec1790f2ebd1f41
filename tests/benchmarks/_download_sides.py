"""One side of the download benchmarks, in a process of its own: ours, or img2dataset with its multiprocessing distributor.

    python -m tests.benchmarks._download_sides hyperclip urls.parquet output 127.0.0.1:8000 THREADS

prints `{"seconds", "downloaded", "failed"}`.  The peer's settings are its best for this work: no EXIF, no hash, no retries,
which leaves it with less to do than ours.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tests.chaos._processes import MARK, processes_of

PROCESSES = 2
ROWS_PER_SHARD = 1000
RESIZE = 256
TIMEOUT_S = 10
"""Of both: ours for the whole request, img2dataset's for one operation on the socket."""
_SAMPLE_EVERY_S = 0.25
_RAY_ITSELF = ("raylet", "gcs_server", "dashboard", "log_monitor", "runtime_env", "ray::IDLE")


class SideResult(NamedTuple):
    seconds: float
    """From URLs to shards, with the workers' start and without that of Ray's own cluster."""
    downloaded: int
    failed: dict[str, int]
    peak_bytes: int
    """Of all processes together: proportional set size, so that what they share counts once."""
    peak_bytes_without_ray: int
    """The same without Ray's own processes, which a cluster has once."""


def write_urls(path: Path, *, origin: str, count: int) -> None:
    rows = range(count)
    urls = [f"http://{origin}/{number}.jpg" for number in rows]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {number}" for number in rows]}), path)


def run_side(side: str, urls: Path, output: Path, *, origin: str, threads: int) -> SideResult:
    """Run a side to its end and watch its memory."""
    mark = f"download-{os.getpid()}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", __name__, side, str(urls), str(output), origin, str(threads)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peaks, ended = {"all": 0, "without": 0}, threading.Event()

    def watch() -> None:
        while not ended.wait(_SAMPLE_EVERY_S):
            sizes = [(one.command, _pss_bytes(one.pid)) for one in processes_of(mark)]
            peaks["all"] = max(peaks["all"], sum(size for _, size in sizes))
            own = sum(size for command, size in sizes if not any(word in command for word in _RAY_ITSELF))
            peaks["without"] = max(peaks["without"], own)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    printed, errors = process.communicate()
    ended.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{side} ended with status {process.returncode}:\n{errors[-4000:]}")
    return SideResult(**json.loads(printed.splitlines()[-1]), peak_bytes=peaks["all"], peak_bytes_without_ray=peaks["without"])


def _pss_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has just ended
        return 0
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def _hyperclip(urls: str, output: str, origin: str, threads: int) -> dict[str, Any]:
    from data_prep.download import download
    from data_prep.download_config import DownloadConfig
    from data_prep.fan_out import TaskConfig
    from data_prep.fetch.policy import FetchPolicy
    from data_prep.url_list import UrlListConfig
    from infra.cluster import ClusterConfig, connected

    count = pq.read_metadata(urls).num_rows
    config = DownloadConfig(
        resize=RESIZE,
        threads=threads,
        retries=0,
        samples_per_shard=ROWS_PER_SHARD,
        samples_per_partition=max(ROWS_PER_SHARD, count // PROCESSES),
        policy=FetchPolicy(timeout_s=TIMEOUT_S, max_requests_per_host=1000, allowed_private_hosts=(origin,)),
        tasks=TaskConfig(max_in_flight=PROCESSES),
    )
    with connected(ClusterConfig(num_cpus=PROCESSES)):
        started = time.perf_counter()
        report = download(config, url_list_uri=urls, url_columns=UrlListConfig(), output_uri=output, progress=lambda *_: None)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "downloaded": report.downloaded, "failed": report.failed}


def _img2dataset(urls: str, output: str, _origin: str, threads: int) -> dict[str, Any]:
    os.environ |= {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    import img2dataset

    started = time.perf_counter()
    img2dataset.download(
        url_list=urls,
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=output,
        output_format="webdataset",
        image_size=RESIZE,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        processes_count=PROCESSES,
        thread_count=threads,
        number_sample_per_shard=ROWS_PER_SHARD,
        timeout=TIMEOUT_S,
        retries=0,
        extract_exif=False,
        compute_hash=None,
        enable_wandb=False,
        distributor="multiprocessing",
    )
    seconds = time.perf_counter() - started
    stats = [json.loads(path.read_text()) for path in Path(output).glob("*_stats.json")]
    failed = sum(one["failed_to_download"] + one["failed_to_resize"] for one in stats)
    return {"seconds": seconds, "downloaded": sum(one["successes"] for one in stats), "failed": {"all": failed}}


if __name__ == "__main__":
    side, *arguments, number_of_threads = sys.argv[1:]
    work = {"hyperclip": _hyperclip, "img2dataset": _img2dataset}[side]
    print(json.dumps(work(*arguments, int(number_of_threads))))
