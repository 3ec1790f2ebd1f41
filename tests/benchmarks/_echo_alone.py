"""A bare echo of two hops under load, in a process whose environment holds the switches; prints what it cost."""

import json
import os
import secrets
import sys
from pathlib import Path

from ray import serve

from infra.cluster import ClusterConfig, connected
from serving.launch import LOGGING, checked_port
from tests.benchmarks._serve_echo_sides import CONCURRENCY, bare_echo
from tests.chaos._processes import MARK, processes_of
from tests.http_load import request_bytes, run_load

BODY, ANSWER = b"x" * 7_000, b"x" * 700


def cpu_seconds(mark: str) -> float:
    """Of all processes of this Ray and this Serve, but not of the client."""
    ticks = 0
    for process in processes_of(mark):
        if process.pid != os.getpid():
            ticks += sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def main(seconds: float) -> None:
    mark = os.environ[MARK] = secrets.token_hex(8)
    with connected(ClusterConfig(num_cpus=2)):
        port = checked_port("127.0.0.1", 0)
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=LOGGING)
        serve.run(bare_echo(ANSWER), name="echo", route_prefix="/echo", logging_config=LOGGING)
        request = request_bytes("/echo", BODY, content_type="image/png")
        run_load(port, request, concurrency=CONCURRENCY, seconds=2)  # until every process is warm
        before = cpu_seconds(mark)
        load = run_load(port, request, concurrency=CONCURRENCY, seconds=seconds)
        used = cpu_seconds(mark) - before
        serve.shutdown()
    assert not load.failures, load.failures[:3]
    found = {"rate": load.rate, "p99_ms": load.percentile_ms(0.99), "cpu_ms": used / len(load.latencies_s) * 1000}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
