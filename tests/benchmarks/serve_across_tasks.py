"""One forward pass for pictures of many tasks, against one encoder a task: `serve.multiplexed` with `serve.batch`.

2,000 calls of one picture each, 64 at a time, over 32 tasks drawn at random; one encoder replica a side, called through its
handle, one thread of torch in each.  The peer keeps a folded encoder a task, for all 32 or for 8 at a time, made from what the
same task store holds; its settings are those that did best in a first round over the grid below.  All in turns.

    python -m tests.benchmarks.serve_across_tasks
    python -m tests.benchmarks.serve_across_tasks --quick     fewer calls, one round; nothing is judged
"""

import asyncio

from serving.switches import switch_on
from tests.result import benchmark_arguments


def main() -> int:
    arguments = benchmark_arguments(__doc__ or "")
    switch_on()  # before Ray Serve is imported, as `hyperclip serve` does it
    from tests.benchmarks._serve_across_tasks import run

    return asyncio.run(run(quick=arguments.quick))


if __name__ == "__main__":
    raise SystemExit(main())
