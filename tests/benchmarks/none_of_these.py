"""How well a calibrated "none of these" holds: on names that it was not fitted on, beside the scores a user has without it.

The shipped model (or `--model`) on the bundled pictures of the artist it never saw (or `--dataset`), the half of the names that
no calibration is fitted on.  Tasks of 2 to 200 names, of any names and of one topic; every second picture shows none of the
names, in tasks of one topic it shows another thing of that topic.  The peers are what one can do without: one threshold for
the best `score`, or for the best `match`.  The ratio is the area under the curve over that of the best score.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from data_prep.sample.pictures import SAMPLE_URI
from tests.result import benchmark_result, environment, measure, rounded
from training.bundle import load_bundle
from training.evaluation.measures import auroc, calibration
from training.evaluation.model_on_set import ModelOnSet
from training.evaluation.none_of_these import NUM_TASKS, Predictions, calibrate, half_of, predictions, probabilities
from training.evaluation.open_set import open_evaluation_set
from training.shipped import shipped_model_folder

MAX_ECE = 0.1


def _area(said: np.ndarray, found: Predictions, chosen: np.ndarray) -> float:
    return auroc(said[chosen & (found.foreign > 0)], said[chosen & (found.foreign == 0)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tasks")
    parser.add_argument("--model", type=Path, default=shipped_model_folder(), help="bundle folder; default: the shipped model")
    parser.add_argument(
        "--dataset", action="append", help="pictures with names, as for hyperclip evaluate; default: the sample"
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    bundle = load_bundle(arguments.model)
    only = {} if arguments.dataset else {"split": "evaluation"}
    pictures = open_evaluation_set(arguments.dataset or [SAMPLE_URI], readings={}, only=only)
    model = ModelOnSet.of(bundle, pictures, pictures.templates or bundle.templates, {})
    num_tasks = NUM_TASKS if arguments.quick else 5 * NUM_TASKS
    found = predictions(model, half_of(pictures.objects, "final"), seed=1, num_tasks=num_tasks)["specialized"]
    calibrated = bundle.none_of_these
    kept = calibrated is not None
    if calibrated is None:
        calibrated = calibrate(bundle, pictures)
    said = probabilities(calibrated, found)
    everything = np.ones(len(said), dtype=bool)
    of_score, of_match = _area(-found.score, found, everything), _area(-found.match, found, everything)
    area = _area(said, found, everything)
    print(f"  {len(said):,} predictions in {found.num_tasks} tasks", file=sys.stderr)
    measures = {
        "auroc": measure(area, goal=(">=", rounded(of_match))),
        "auroc_of_best_score": measure(of_score),
        "auroc_of_best_match": measure(of_match),
        "ece": measure(calibration(said, found.foreign).ece, goal=("<=", MAX_ECE)),
        "ece_of_one_minus_best_match": measure(calibration(1 - found.match, found.foreign).ece),
        "ece_of_one_minus_best_score": measure(calibration(1 - found.score, found.foreign).ece),
    }
    for kind in np.unique(found.kind):
        chosen = found.kind == kind
        measures[f"auroc_{kind}"] = measure(_area(said, found, chosen))
        measures[f"ece_{kind}"] = measure(calibration(said[chosen], found.foreign[chosen]).ece)
    for number in np.unique(found.num_labels):
        chosen = found.num_labels == number
        measures[f"auroc_{number}_names"] = measure(_area(said, found, chosen))
        measures[f"mean_said_{number}_names"] = measure(float(said[chosen].mean()))
    return benchmark_result(
        "none_of_these",
        ratio=area / of_score,
        goal=(">=", 1.0),
        measures=measures,
        pictures=pictures.name,
        predictions=len(said),
        tasks=found.num_tasks,
        model=bundle.digest[:12],
        calibration=calibrated.fitted_on if kept else f"fitted here: {calibrated.fitted_on}",
        seconds=round(time.perf_counter() - started, 1),
        **environment("torch", "numpy"),
    )


if __name__ == "__main__":
    sys.exit(main())
