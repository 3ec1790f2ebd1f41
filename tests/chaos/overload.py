"""Five times what the service can do is asked of it, for minutes: it refuses the rest quickly and answers the others in time.

Capacity is what 32 callers get who each ask again when they are answered (a closed loop: one batch of 16 runs while the other
gathers, and more callers wait longer without getting more).  The p99 of these calls is the baseline: that of a service that has
all the work it can do and turns nobody away; taken before and after the overload, together.  A lighter load would give a
smaller one, but its calls hardly wait, and every queue that keeps a batch full would break the promise.

Then eight tenants send pictures at five times that rate, whether they are answered or not (an open loop, Poisson).  Beside them
a ninth sends now and then, and somebody asks for `/healthz`.  Promise: every answer is 200, 429 or 503; a refusal is a problem
document with `Retry-After`; nothing hangs or breaks; calls that are taken have at most twice the baseline's p99; the ninth is
served as if it were alone; memory does not grow; and a light load after it is served within 5 s as one before it.

python -m tests.chaos.overload [--quick | --minutes N] [--seed S]
"""

import argparse

from serving.switches import switch_on

QUICK_S = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_S:g} s of overload")
    parser.add_argument("--minutes", type=float, default=3.0, help="of overload; default 3")
    parser.add_argument("--seed", type=int, default=0, help="decides when requests come")
    arguments = parser.parse_args()
    switch_on()  # before Ray Serve is imported, as `hyperclip serve` does it
    from tests.chaos._overload import measured

    return measured(seconds=QUICK_S if arguments.quick else 60 * arguments.minutes, quick=arguments.quick, seed=arguments.seed)


if __name__ == "__main__":
    raise SystemExit(main())
