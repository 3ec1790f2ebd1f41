"""The result of a benchmark or a chaos run: one JSON object as the last line, and the exit status.

Both sides of a comparison are measured in the same run, in turns, so that a slow moment of the machine hits both.
"""

import argparse
import importlib.metadata
import json
import operator
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Op = Literal[">=", "<=", ">", "<"]
_HOLDS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


def measure(value: float, *, goal: tuple[Op, float] | None = None, unit: str = "") -> dict[str, Any]:
    """One figure; without a goal it is for information and always ok."""
    found: dict[str, Any] = {"value": rounded(value), "unit": unit, "ok": True}
    if goal is not None:
        op, bound = goal
        found |= {"goal": {"op": op, "value": bound}, "ok": _HOLDS[op](value, bound)}
    return found


def interleaved(sides: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Run every side once a round, in turns (the order is turned round each time); returns what each gave, round by round."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            found[name].append(sides[name]())
            print(f"  round {number + 1} of {rounds}: {name} {found[name][-1]:.4g}", file=sys.stderr, flush=True)
    return found


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Smallest, median and largest of the rounds."""
    return {
        "min": rounded(min(values)),
        "median": rounded(statistics.median(values)),
        "max": rounded(max(values)),
        "rounds": len(values),
    }


def rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def environment(*packages: str) -> dict[str, Any]:
    """Versions of what was measured, and the machine."""
    return {
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}},
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "system": platform.system(), "load": os.getloadavg()[0]},
    }


def benchmark_result(
    name: str, *, ratio: float, goal: tuple[Op, float] | None, measures: Mapping[str, Mapping[str, Any]], **details: Any
) -> int:
    """Print the last line of a benchmark; returns its exit status: 0 only when every goal holds.

    Args:
        goal: of the ratio; None for a smoke run, whose ratio means nothing.
    """
    ok = (goal is None or _HOLDS[goal[0]](ratio, goal[1])) and all(one["ok"] for one in measures.values())
    shown = None if goal is None else {"op": goal[0], "value": goal[1]}
    head = {"name": name, "ratio": rounded(ratio), "goal": shown}
    print(json.dumps({**head, "measures": measures, "ok": ok, **details}), flush=True)
    return 0 if ok else 1


def chaos_result(
    name: str, *, injected: int, lost: int, failed: int, measures: Mapping[str, Mapping[str, Any]], **details: Any
) -> int:
    """Print the last line of a chaos run; returns its exit status: 0 only when nothing was lost and nothing failed.

    Args:
        injected: faults that really happened.
        lost: things that were there before a fault and not after it.
        failed: faults after which the system was not as promised.
    """
    ok = injected > 0 and not lost and not failed and all(one["ok"] for one in measures.values())
    head = {"name": name, "injected": injected, "lost": lost, "failed": failed}
    print(json.dumps({**head, "measures": measures, "ok": ok, **details}), flush=True)
    return 0 if ok else 1


def benchmark_arguments(description: str) -> argparse.Namespace:
    """`--quick`: smaller sizes and fewer rounds, to see that it runs; the figures that count come from the full run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller, under a minute where possible")
    return parser.parse_args()


def chaos_arguments(
    description: str, *, count: int, quick_count: int, parser: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """`--quick`, `--count` and `--seed`; `count` of the result is how many faults to inject.

    Args:
        parser: with what else a run takes.
    """
    parser = parser or argparse.ArgumentParser()
    parser.description = description
    parser.add_argument("--quick", action="store_true", help=f"inject {quick_count} faults only")
    parser.add_argument("--count", type=int, default=None, help=f"faults to inject; default {count}")
    parser.add_argument("--seed", type=int, default=0, help="decides where the faults strike")
    arguments = parser.parse_args()
    if arguments.count is None:
        arguments.count = quick_count if arguments.quick else count
    if arguments.count < 1:
        parser.error(f"--count {arguments.count}: at least one fault must be injected")
    return arguments


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 (a pseudo-file, read line by line)
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    except OSError:
        return platform.machine()
