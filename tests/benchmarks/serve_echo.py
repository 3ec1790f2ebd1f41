"""Requests a second of our classify call with a no-op engine, against a bare Serve echo of two hops.

Both applications run in the same Serve, behind the same proxy and with the same switches, get the same picture as body and give
an answer of the same length; only the one that is measured has load.  The echo is Serve at its best: no web framework, bytes in
and bytes out.  Ours does all that the real ingress does: limits, headers, metrics, the task, the answer.

python -m tests.benchmarks.serve_echo [--quick]
"""

from serving.switches import switch_on
from tests.result import benchmark_arguments


def main() -> int:
    arguments = benchmark_arguments(__doc__ or "")
    switch_on()  # before Ray Serve is imported, as `hyperclip serve` does it
    from tests.benchmarks._serve_echo_sides import measured

    return measured(rounds=2 if arguments.quick else 8, seconds_a_round=2 if arguments.quick else 5, quick=arguments.quick)


if __name__ == "__main__":
    raise SystemExit(main())
