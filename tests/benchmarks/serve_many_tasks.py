"""What it costs that pictures are of many tasks: 1,000 tasks mixed at random, against one task.

Both are asked of the same replica, one picture a call, 64 calls at a time, in turns, after every task has been met once.  Also:
what a task takes in memory, of ten labels (as counted, and as the process grows) and of 10,000.  A second replica has room for
a tenth of the tasks only, and must stay within it.

    python -m tests.benchmarks.serve_many_tasks
    python -m tests.benchmarks.serve_many_tasks --quick     100 tasks, fewer calls, one round; nothing is judged
"""

import asyncio

from serving.switches import switch_on
from tests.result import benchmark_arguments


def main() -> int:
    arguments = benchmark_arguments(__doc__ or "")
    switch_on()  # before Ray Serve is imported, as `hyperclip serve` does it
    from tests.benchmarks._serve_many_tasks import run

    return asyncio.run(run(quick=arguments.quick))


if __name__ == "__main__":
    raise SystemExit(main())
