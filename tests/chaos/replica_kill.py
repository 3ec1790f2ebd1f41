"""One of two replicas is killed, again and again, while clients go on asking.

Ingress, hypernetwork and image encoder have two replicas each.  Clients make tasks (old and new ones), classify and ask for
features all the time.  A replica dies by SIGKILL in the middle of it; the next one only when all are ready again.  Promise: a
client that tries once more, after what `Retry-After` says, sees no failure and no wrong answer.

python -m tests.chaos.replica_kill [--quick | --count N] [--seed S]
"""

from serving.switches import switch_on
from tests.result import chaos_arguments


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=50, quick_count=5)
    switch_on()  # before Ray Serve is imported, as `hyperclip serve` does it
    from tests.chaos._replica_kill import measured

    return measured(count=arguments.count, seed=arguments.seed)


if __name__ == "__main__":
    raise SystemExit(main())
