"""Requests that are cancelled, and requests on which the forward pass fails, among those that share their batches.

One replica of the image encoder behind Serve, called through its handle 64 calls at a time, for tasks of several tenants.  A
fifth of the calls is cancelled at a random moment, while they wait, are decoded or run; one in twenty is poison, half of it
pictures that nobody can read, half tasks on whose pictures the forward pass raises.  Every other call must be answered, as it
is answered when it comes alone; every poison call must be refused; nothing may hang, and the same process must go on.

    python -m tests.chaos.batch_hygiene                 10,000 requests
    python -m tests.chaos.batch_hygiene --quick         500 requests
"""

from serving.switches import switch_on
from tests.result import chaos_arguments


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=10_000, quick_count=500)
    switch_on()  # before Ray Serve is imported, as `hyperclip serve` does it
    from tests.chaos._batch_hygiene import measured

    return measured(count=arguments.count, seed=arguments.seed)


if __name__ == "__main__":
    raise SystemExit(main())
