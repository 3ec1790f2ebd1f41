"""HyperCLIP against its SigLIP twin with as many further steps on the same batches, on concepts held out of training.

Random tasks of the held-out concepts alone, and one of them among nine names of its topic from any file.  The comparisons are
those of gain_unseen_artist; both read the same sweep, so what one has trained the other does not train again.

    python -m tests.benchmarks.gain_unseen_concept --pictures FOLDER      the figures that count
    python -m tests.benchmarks.gain_unseen_concept                        a smoke run on the bundled sample
"""

import argparse
import sys

from tests.benchmarks._cost import same_in_any_order
from tests.benchmarks._gain import HYPERCLIP, gain_measures, ratio, table
from tests.benchmarks._sweep_of_results import results_of, sweep_arguments
from tests.result import benchmark_result, environment

NAME = "gain_unseen_concept"
ALONE, AMONG_KNOWN = "unseen-concept", "unseen-concept-among-known"
TARGETED = {ALONE: ("10_way", "50_way"), AMONG_KNOWN: ("10_way_held_out_among_known",)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep_arguments(parser)
    results = results_of(parser.parse_args())
    measures = gain_measures(results.comparison, TARGETED, judged=not results.smoke)
    measures |= same_in_any_order(results.bundles(HYPERCLIP), results.folder / "eval-concept.parquet")
    print(f"\n{NAME} ({results.verdict}), {len(results.comparison.seeds)} seeds, 95 % intervals over seeds and tasks")
    print("\n".join(table(measures)), flush=True)
    return benchmark_result(
        NAME,
        ratio=ratio(results.comparison, *TARGETED),
        goal=None if results.smoke else (">", 1.0),
        measures=measures,
        **results.details,
        **environment("torch", "timm"),
    )


if __name__ == "__main__":
    sys.exit(main())
