"""A hundred thousand calls that nobody should make: mutated pictures, odd labels, broken bodies, and the OpenAPI document bent.

The service as it is run, over HTTP.  Pictures of all formats are cut, spliced, flipped and rewritten chunk by chunk, and go
through every route that takes some; labels are NUL, lone surrogates, right to left, special tokens, a megabyte, 100,000 at a
time; forms and JSON are broken in all places; schemathesis makes calls from the OpenAPI document.  Promise: no answer is an
error of ours (5xx; 429 and 503 with Retry-After are counted apart), every problem is a problem document, no connection is
dropped, the same processes are there at the end, each within its memory, and a good call in between is answered as ever.

python -m tests.chaos.fuzz [--quick | --count N] [--seed S] [--keep FOLDER]
"""

import argparse
from pathlib import Path

from serving.switches import switch_on
from tests.result import chaos_arguments


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path, default=None, help="folder for the calls that failed, as they went over the wire")
    arguments = chaos_arguments(__doc__ or "", count=100_000, quick_count=2_000, parser=parser)
    switch_on()  # before Ray Serve is imported, as `hyperclip serve` does it
    from tests.chaos._fuzz import measured

    return measured(count=arguments.count, seed=arguments.seed, keep=arguments.keep)


if __name__ == "__main__":
    raise SystemExit(main())
