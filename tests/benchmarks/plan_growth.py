"""Memory and speed of planning a URL list, by its length: the planner must not hold the list.

A synthetic list in DataComp's layout (uid, url, text, sha256, a column that is ignored), and one without uids, in parquet files
of a million rows.  Each length is planned in a process of its own, whose peak memory is that of the planner with its
libraries.  The ratio is the peak of the longest list over that of one a tenth as long.  Linux only: peaks are read from /proc.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.result import benchmark_result, environment, measure

LENGTHS, QUICK_LENGTHS, FULL_LENGTHS = (10**5, 10**6, 10**7), (10**4, 10**5), (10**5, 10**6, 10**7, 10**8)
ROWS_PER_FILE = 1_000_000
MAX_GROWTH = 1.3
"""Ten times the rows may cost so much more memory at their peak: the allocator's, and a list of partitions."""


def write_list(folder: Path, rows: int, *, with_uid: bool) -> int:
    """Returns its size in bytes."""
    folder.mkdir()
    for start in range(0, rows, ROWS_PER_FILE):
        number = np.arange(start, min(rows, start + ROWS_PER_FILE))
        digits = pa.array(number).cast(pa.string())
        host = pa.array(number * 2654435761 % 100_003).cast(pa.string())
        dull = pa.array([None]).take(pa.array(np.zeros(len(number), np.int32)))
        columns: dict[str, pa.Array] = {
            "url": pa.compute.binary_join_element_wise("https://host-", host, ".example/pictures/", digits, ".jpg", ""),
            "text": pa.compute.binary_join_element_wise("a picture of the thing with the number ", digits, " on a shelf", ""),
            "face_bboxes": dull,
        }
        if with_uid:
            halves = np.random.default_rng(start).integers(0, 2**63, size=(len(number), 2), dtype=np.int64)
            columns["uid"] = _hex(halves, 32)
            wide = np.random.default_rng(start + 1).integers(0, 2**63, size=(len(number), 4), dtype=np.int64)
            columns["sha256"] = _hex(wide, 64)
        pq.write_table(pa.table(columns), folder / f"{start // ROWS_PER_FILE:05d}.parquet", row_group_size=100_000)
    return sum(path.stat().st_size for path in folder.iterdir())


def _hex(values: "np.ndarray[Any, np.dtype[np.int64]]", characters: int) -> pa.Array:
    text = values.tobytes().hex().encode()
    offsets = pa.array(np.arange(0, len(text) + 1, characters, dtype=np.int32)).buffers()[1]
    return pa.StringArray.from_buffers(len(values), offsets, pa.py_buffer(text))


def _plan(folder: str, output: str, preset: bool, answer: Any) -> None:
    from data_prep.url_list import UrlListConfig
    from data_prep.url_plan import plan_url_list

    columns = UrlListConfig(preset="datacomp") if preset else UrlListConfig(caption="text")
    started = time.monotonic()
    plan = plan_url_list(folder, columns, samples_per_partition=10_000, samples_per_shard=10_000, output_uri=output)
    seconds = time.monotonic() - started
    started = time.monotonic()
    plan_url_list(folder, columns, samples_per_partition=10_000, samples_per_shard=10_000, output_uri=output)
    again = time.monotonic() - started
    status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak too: it outlives exec
    peak_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    answer.send({"rows": plan.num_rows, "seconds": seconds, "again_s": again, "peak_mib": peak_mib})


def planned(folder: Path, output: Path, *, preset: bool) -> dict[str, float]:
    """Plan a list in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_plan, args=(str(folder), str(output), preset, theirs))
    process.start()
    theirs.close()
    try:
        found: dict[str, float] = ours.recv()
    finally:
        process.join()
    shutil.rmtree(output)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 100,000 rows")
    parser.add_argument("--full", action="store_true", help="up to 100 million rows: 30 GB of disk")
    parser.add_argument("--folder", default=None, help="where the lists are written; removed at the end")
    arguments = parser.parse_args()
    lengths = QUICK_LENGTHS if arguments.quick else FULL_LENGTHS if arguments.full else LENGTHS
    measures: dict[str, Any] = {}
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="plan-growth-", dir=arguments.folder) as temporary:
        for kind in ("with_uid", "derived_uid"):
            for rows in (10, *lengths):
                if rows > 10**7 and kind == "derived_uid":
                    continue
                folder = Path(temporary) / f"{kind}-{rows}"
                size = write_list(folder, rows, with_uid=kind == "with_uid")
                found = planned(folder, Path(temporary) / "raw", preset=kind == "with_uid")
                shutil.rmtree(folder)
                peaks.setdefault(kind, []).append(found["peak_mib"])
                told = f"  {kind}, {rows:,} rows, list of {size / 1e6:,.0f} MB: {json.dumps(found)}"
                print(told, file=sys.stderr, flush=True)
                if rows == 10:
                    measures[f"{kind}.10.peak"] = measure(found["peak_mib"], unit="MiB")
                    continue
                measures[f"{kind}.{rows}.rate"] = measure(rows / found["seconds"], unit="rows/s")
                measures[f"{kind}.{rows}.peak"] = measure(found["peak_mib"], unit="MiB")
                measures[f"{kind}.{rows}.planned_again"] = measure(found["again_s"], unit="s")
    ratio = max(found[-1] / found[-2] for found in peaks.values())
    goal: tuple[Literal["<="], float] | None = None if arguments.quick else ("<=", MAX_GROWTH)
    return benchmark_result("plan_growth", ratio=ratio, goal=goal, measures=measures, **environment("pyarrow", "numpy"))


if __name__ == "__main__":
    sys.exit(main())
