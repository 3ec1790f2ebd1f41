"""Download rate beside img2dataset alone: the same origin, pictures, sizes and number of processes, all our checks on.

10,000 JPEGs to 256 px from loopback with a latency of 5 and 200 ms, from a clean origin and from one where 10 % are missing and
5 % drip.  Each side runs with the number of threads that is fastest for it there, found beforehand on fewer pictures.

    python -m tests.benchmarks.download_vs_img2dataset
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks._download_sides import SideResult, run_side, write_urls
from tests.benchmarks._picture_origin import picture_origin
from tests.result import benchmark_arguments, benchmark_result, environment, measure, spread

SIDES = ("hyperclip", "img2dataset")
LATENCIES_MS = (5, 200)
THREADS = (32, 128)
"""Per process; img2dataset's own default is 256."""
CLEAN_GOAL, FAULTY_GOAL = 1.0, 1.5


def main() -> int:
    arguments = benchmark_arguments(__doc__.splitlines()[0])
    count, trial, rounds = (400, 0, 1) if arguments.quick else (10_000, 2_000, 2)
    latencies = LATENCIES_MS[:1] if arguments.quick else LATENCIES_MS
    measures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    rates: list[float] = []
    with tempfile.TemporaryDirectory(prefix="hyperclip-download-") as temporary:
        folder = Path(temporary)
        for latency_ms in latencies:
            for faulty in (False, True):
                threads = best_threads(folder, latency_ms=latency_ms, faulty=faulty, count=trial)
                name = f"{'faulty' if faulty else 'clean'}_{latency_ms}_ms"
                found = both_sides(folder, latency_ms=latency_ms, faulty=faulty, count=count, threads=threads, rounds=rounds)
                ratio = median_rate(found["hyperclip"]) / median_rate(found["img2dataset"])
                goal = None if arguments.quick else (">=", FAULTY_GOAL if faulty else CLEAN_GOAL)
                measures[f"{name}_ratio"] = measure(ratio, goal=goal)
                own, peer = (max(one.peak_bytes_without_ray for one in found[side]) for side in SIDES)
                memory_goal = None if arguments.quick else ("<=", 1.0)
                measures[f"{name}_memory_ratio"] = measure(own / peer, goal=memory_goal)
                measures[f"{name}_memory_with_ray"] = measure(
                    max(one.peak_bytes for one in found["hyperclip"]) / 2**20, unit="MiB"
                )
                measures[f"{name}_memory_img2dataset"] = measure(peer / 2**20, unit="MiB")
                details[name] = {
                    side: {
                        "samples_per_s": spread([one.downloaded / one.seconds for one in found[side]]),
                        "seconds": spread([one.seconds for one in found[side]]),
                        "downloaded": found[side][0].downloaded,
                        "failed": found[side][0].failed,
                        "threads": threads[side],
                    }
                    for side in SIDES
                }
                rates += [] if faulty else [ratio]
    return benchmark_result(
        "download_vs_img2dataset",
        ratio=min(rates),
        goal=None if arguments.quick else (">=", CLEAN_GOAL),
        measures=measures,
        spread=details,
        sizes={"urls": count, "rounds": rounds},
        **environment("img2dataset", "ray", "pillow"),
    )


def best_threads(folder: Path, *, latency_ms: int, faulty: bool, count: int) -> dict[str, int]:
    """For each side the number of threads that is fastest on this origin; the first where `count` is 0."""
    if not count:
        return dict.fromkeys(SIDES, THREADS[0])
    rates: dict[str, dict[int, float]] = {side: {} for side in SIDES}
    for threads in THREADS:
        found = both_sides(
            folder, latency_ms=latency_ms, faulty=faulty, count=count, threads=dict.fromkeys(SIDES, threads), rounds=1
        )
        for side in SIDES:
            rates[side][threads] = median_rate(found[side])
    return {side: max(of, key=lambda threads: of[threads]) for side, of in rates.items()}


def both_sides(
    folder: Path, *, latency_ms: int, faulty: bool, count: int, threads: dict[str, int], rounds: int
) -> dict[str, list[SideResult]]:
    """Both sides in turns on one origin."""
    found: dict[str, list[SideResult]] = {side: [] for side in SIDES}
    with picture_origin(latency_ms=latency_ms, faulty=faulty) as origin:
        urls = folder / "urls.parquet"
        write_urls(urls, origin=origin, count=count)
        for number in range(rounds):
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                with tempfile.TemporaryDirectory(dir=folder) as output:
                    result = run_side(side, urls, Path(output) / "out", origin=origin, threads=threads[side])
                found[side].append(result)
                told = f"{latency_ms} ms{', faulty' if faulty else ''}, {count:,} URLs, {threads[side]} threads, round {number}"
                rate = f"{result.downloaded:,} in {result.seconds:.1f} s, {result.downloaded / result.seconds:.0f} a second"
                print(f"  {told}: {side} {rate}", file=sys.stderr, flush=True)
    return found


def median_rate(results: list[SideResult]) -> float:
    """Pictures a second."""
    return statistics.median(one.downloaded / one.seconds for one in results)


if __name__ == "__main__":
    sys.exit(main())
