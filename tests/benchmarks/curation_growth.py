"""Growth of curation over 10^4, 10^5 and 10^6 samples: filters, exact and perceptual duplicates, and the lists written.

The measurements are synthetic, as a pass over raw shards would have left them: a tenth of the samples repeats the bytes of
another, a tenth looks like another (one to four bits of the hash differ), every hundredth picture is the same white one.
What is measured is all that the driver does with them: reading, rules, and the keep lists on disk.  Each size is a process
of its own, in rounds that take turns; memory is the growth of its peak.

Growth is the slope of log CPU time over log size, fitted to the three sizes; CPU time, because it does not count what else
the machine does.  n log n itself has a slope of about 1.09 from 10^4 to 10^6.  The goal leaves 0.1 for noise, and for caches
that no longer hold the larger sizes.
"""

import hashlib
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.curation.curate import CurateConfig
from data_prep.curation.keep_list import write_lists
from data_prep.curation.looks import LOOK_SCHEMA, looks_uri
from data_prep.curation.near import UNKNOWN, Hashes, greedy_duplicates
from data_prep.curation.pool import load_pool
from data_prep.curation.rules import NOT_DROPPED, apply_rules
from tests.result import Op, benchmark_arguments, benchmark_result, environment, interleaved, measure, spread

NAME = "curation_growth"
SAMPLES_PER_SHARD = 10_000
TOLERANCE = 0.1
STAGES = ("read", "rules", "perceptual", "write")


def write_looks(folder: str, count: int) -> list[str]:
    """Files of measurements, as `look_at_shard` writes them."""
    rng = np.random.default_rng(0)
    phash = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    content = np.arange(count)
    near = rng.permutation(count)[: count // 10]
    phash[near] = phash[rng.integers(0, count, len(near))]
    for _ in range(4):
        phash[near] ^= np.uint64(1) << rng.integers(0, 64, len(near), dtype=np.uint64)
    content[rng.permutation(count)[: count // 10]] = rng.integers(0, count, count // 10)
    phash[rng.permutation(count)[: count // 100]] = 0
    width, height = rng.integers(20, 2000, count), rng.integers(100, 1000, count)
    uris = []
    for number, start in enumerate(range(0, count, SAMPLES_PER_SHARD)):
        rows = np.arange(start, min(start + SAMPLES_PER_SHARD, count))
        captions = [f"a photo of thing number {row}" for row in rows]
        columns = {
            "row": rows,
            "uid": [f"{row:032x}" for row in rows],
            "width": width[rows],
            "height": height[rows],
            "format": ["jpeg"] * len(rows),
            "sha256": [hashlib.sha256(b"%d" % one).hexdigest() for one in content[rows]],
            "phash": phash[rows],
            "caption": captions,
            "caption_characters": [len(text) for text in captions],
            "caption_words": [len(text.split()) for text in captions],
            "shard": [f"shards/00000/{number:05d}.tar"] * len(rows),
            "image_offset": (rows - start) * 30_000,
            "image_bytes": [25_000] * len(rows),
        }
        blank = {name: pa.nulls(len(rows), LOOK_SCHEMA.field(name).type) for name in LOOK_SCHEMA.names}
        arrays = blank | {name: pa.array(values, LOOK_SCHEMA.field(name).type) for name, values in columns.items()}
        uri = looks_uri(folder, number)
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(arrays, schema=LOOK_SCHEMA), uri)
        uris.append(uri)
    return uris


def curate_looks(uris: list[str], output: str) -> dict[str, float]:
    """CPU seconds of each stage and of all, seconds on the clock, peak growth in MiB, samples kept."""
    config, started = CurateConfig(), time.perf_counter()
    before = _peak_mib()
    marks = [time.process_time()]
    pool = load_pool(uris)
    marks.append(time.process_time())
    results, dropped_by = apply_rules(
        pool,
        filters=config.filters,
        language=None,
        scores=(),
        evaluation=None,
        leak_distance=0,
        dedup=config.dedup.rebuilt(max_hamming_distance=None),
    )
    marks.append(time.process_time())
    left = np.flatnonzero((dropped_by == NOT_DROPPED) & pool.has_phash)
    greedy_duplicates(Hashes(pool.phash[left], np.full(len(left), UNKNOWN, np.int64)), max_distance=4)
    marks.append(time.process_time())
    write_lists(pool, results, dropped_by, output)
    marks.append(time.process_time())
    found = dict(zip(STAGES, np.diff(marks).tolist(), strict=True))
    kept = int((dropped_by == NOT_DROPPED).sum())
    return {
        **found,
        "cpu": marks[-1] - marks[0],
        "clock": time.perf_counter() - started,
        "mib": _peak_mib() - before,
        "kept": kept,
    }


def in_fresh_process(folder: str, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.curation_growth", "--measure", folder, str(count)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def slope(sizes: list[int], values: list[float]) -> float:
    """Of a straight line through log size and log value."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> int:
    if sys.argv[1:2] == ["--measure"]:
        folder, count = sys.argv[2], int(sys.argv[3])
        uris = [looks_uri(folder, number) for number in range(math.ceil(count / SAMPLES_PER_SHARD))]
        curate_looks(uris[:1], f"{folder}/warm")  # libraries are loaded before we count
        print(json.dumps(curate_looks(uris, f"{folder}/out")))
        return 0
    quick = benchmark_arguments(__doc__ or NAME).quick
    sizes, rounds = ([10_000, 30_000, 100_000], 1) if quick else ([10_000, 100_000, 1_000_000], 3)
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory(prefix="hyperclip-growth-") as temporary:
        folders = {size: f"{temporary}/{size}" for size in sizes}
        for size, folder in folders.items():
            write_looks(folder, size)

        def side(size: int) -> float:
            found[size].append(in_fresh_process(folders[size], size))
            return found[size][-1]["cpu"]

        interleaved({str(size): lambda size=size: side(size) for size in sizes}, rounds=rounds)
    best = {
        key: [min(one[key] for one in found[size]) for size in sizes] for key in (*STAGES, "cpu", "clock")
    }  # the machine's other work only ever adds
    memory = [statistics.median(one["mib"] for one in found[size]) for size in sizes]
    ideal = slope(sizes, [size * math.log(size) for size in sizes])
    goal: tuple[Op, float] | None = None if quick else ("<=", round(ideal + TOLERANCE, 3))
    exponents = {
        f"exponent_{key}": measure(slope(sizes, best[key]), goal=goal if key in ("cpu", "perceptual") else None)
        for key in ("cpu", *STAGES)
    }
    return benchmark_result(
        NAME,
        ratio=slope(sizes, best["cpu"]),
        goal=goal,
        measures={
            **exponents,
            "exponent_of_n_log_n": measure(ideal),
            **{
                f"rate_{size}": measure(size / seconds, unit="samples/s")
                for size, seconds in zip(sizes, best["clock"], strict=True)
            },
            **{f"memory_{size}": measure(mib, unit="MiB") for size, mib in zip(sizes, memory, strict=True)},
            "bytes_per_sample": measure((memory[-1] - memory[0]) * (1 << 20) / (sizes[-1] - sizes[0]), unit="B"),
        },
        stages={
            str(size): {key: spread([one[key] for one in found[size]]) for key in (*STAGES, "cpu", "clock")} for size in sizes
        },
        tolerance=TOLERANCE,
        **environment("numpy", "pyarrow"),
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
