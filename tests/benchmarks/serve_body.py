"""A picture as the body of a call, as our interface takes it, against the same picture as base64 in JSON.

The same ingress and a no-op engine on both sides; the JSON side has a route more, which reads the JSON and decodes the base64.
Stated without a goal: requests a second, and CPU a request of the ingress, the proxy and all the rest of Serve together.

python -m tests.benchmarks.serve_body [--quick]
"""

from serving.switches import switch_on
from tests.result import benchmark_arguments


def main() -> int:
    arguments = benchmark_arguments(__doc__ or "")
    switch_on()  # before Ray Serve is imported, as `hyperclip serve` does it
    from tests.benchmarks._serve_body_sides import measured

    return measured(rounds=2 if arguments.quick else 6, seconds_a_round=2 if arguments.quick else 5)


if __name__ == "__main__":
    raise SystemExit(main())
