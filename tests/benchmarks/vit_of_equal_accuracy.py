"""Which ViT is as accurate as the small convolutional encoder, and what does it cost?

ViTs of some sizes at the same image size are trained from scratch, text encoder and all, through the stages of the sweep's
`siglip-more`: all pictures, then the emoji twice, on the same batches with the same schedule, the first stage at a rate that
suits them better.  Accuracy is on the tasks of the artist never trained on, beside `siglip-more` of the same seeds; parameters,
FLOPs, latency and size in INT8 are those of the exported classifiers.  Where no size is as accurate, it says what each reaches.

    python -m tests.benchmarks.vit_of_equal_accuracy --pictures FOLDER --width 64 96 --depth 4
    python -m tests.benchmarks.vit_of_equal_accuracy --quick          a smoke run on the bundled sample
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from infra.errors import BadInputError
from pipeline.sweep import Contender
from tests.benchmarks._gain import MATCHED, TWIN, table
from tests.benchmarks._int8 import quantize
from tests.benchmarks._on_device import passes
from tests.benchmarks._rival_training import (
    SET,
    Course,
    JudgedRival,
    Rival,
    compared_with_rivals,
    judged,
    ratio_of,
    rival_measures,
)
from tests.benchmarks._sweep_of_results import Part, Results, results_of, sweep_arguments
from tests.benchmarks._vit import with_vit
from tests.benchmarks.encoder_cost import NUM_NAMES, Sample, latency_ratio, make_side
from tests.result import benchmark_result, environment, interleaved, measure
from training.bundle import Bundle
from training.model.hyperclip import HyperClip, HyperClipConfig

NAME = "vit_of_equal_accuracy"
STAGES = ("all-pictures", TWIN, MATCHED)
FIRST_RATE = 1e-3
"""Of the first stage, in place of the convolutional encoder's 3e-3."""
NEUTRAL = "neutral"
PLAIN = Contender(MATCHED, NEUTRAL)


@dataclass(frozen=True)
class Size:
    patch: int
    width: int
    depth: int

    @property
    def name(self) -> str:
        return f"vit-{self.width}x{self.depth}-patch-{self.patch}"

    def model(self, plain: Bundle) -> HyperClipConfig:
        """The plain model with this ViT for a trunk.  Raises BadInputError where pictures or width do not divide."""
        image = with_vit(plain.model.image_encoder, patch=self.patch, width=self.width, depth=self.depth)
        return replace(plain.model.config, name="siglip_vit", image=image)


def trained_vits(results: Results, size: Size) -> list[JudgedRival]:
    """Seed after seed."""
    found = []
    for *runs, plain in zip(*(results.runs(arm) for arm in STAGES), results.bundles(MATCHED), strict=True):
        course = Course.of(results, runs, plain)
        first, *later = course.stages
        optimizer = first.optimizer.rebuilt(learning_rate=min(FIRST_RATE, first.optimizer.learning_rate))
        course = replace(course, stages=[first.rebuilt(optimizer=optimizer), *later])
        model = size.model(plain)
        make = partial(_fresh, model)
        found.append(judged(size.name, NEUTRAL, make, course, start={"model": model.to_dict()}))
    return found


def _fresh(model: HyperClipConfig) -> Rival:
    return Rival(HyperClip(model))


def cost_measures(plain: Bundle, sizes: list[Size], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Of classifiers for ten names; that of the ViTs with random weights, which change nothing of it."""
    sample = Sample.of(plain, num_tasks=2)
    labels, side = sample.labels(sample.tasks[0]), plain.preprocess.image_size
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="hyperclip-vit-") as temporary:
        folder, files = Path(temporary), {}
        bundles = {MATCHED: plain, **{size.name: _untrained(size, plain) for size in sizes}}
        for name, bundle in bundles.items():
            one = make_side(bundle, labels, folder / name)
            files[name], files[f"{name}_int8"] = one.file, folder / f"{name}-int8.onnx"
            quantize(one.file, files[f"{name}_int8"], calibration=sample.calibration)
            found |= {f"{name}.parameters": measure(one.parameters), f"{name}.flops": measure(one.flops)}
            found |= {f"{name}.bytes{end}": measure(files[f"{name}{end}"].stat().st_size) for end in ("", "_int8")}
        times = interleaved({name: passes(file, side) for name, file in files.items()}, rounds=rounds)
    found |= {f"{name}.latency": measure(1000 * statistics.median(took), unit="ms") for name, took in times.items()}
    for size in sizes:
        found[f"{size.name}.latency_over_{MATCHED}"] = measure(statistics.median(latency_ratio(times, size.name, MATCHED)))
    return found


def _untrained(size: Size, plain: Bundle) -> Bundle:
    model = HyperClip(size.model(plain)).requires_grad_(False).eval()
    return replace(plain, model=model, digest="0" * 64)


def smallest_as_accurate(sizes: list[Size], ratios: Mapping[str, float], measures: Mapping[str, Any]) -> str | None:
    """The one with the fewest parameters among those that are, on the mean over the kinds of tasks."""
    reached = [size.name for size in sizes if ratios[size.name] >= 1]
    return min(reached, key=lambda name: measures[f"{name}.parameters"]["value"], default=None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep_arguments(parser)
    parser.add_argument("--width", type=int, nargs="+", default=[64, 96], help="channels of a token")
    parser.add_argument("--depth", type=int, nargs="+", default=[4], help="blocks; every width is taken with every depth")
    parser.add_argument("--patch", type=int, nargs="+", default=[8], help="pixels; every size is taken with every patch")
    arguments = parser.parse_args()
    sizes = [Size(patch, width, depth) for patch, width, depth in product(arguments.patch, arguments.width, arguments.depth)]
    results = results_of(arguments, part=Part("vit", (MATCHED,), SET))
    plain = results.bundles(MATCHED)[0]
    try:
        for size in sizes:  # before anything is trained
            size.model(plain)
    except BadInputError as error:
        parser.error(str(error))
    found = {size.name: trained_vits(results, size) for size in sizes}
    contenders = {name: Contender(name, NEUTRAL) for name in found}
    pairs = [(one, PLAIN) for one in contenders.values()]
    comparison = compared_with_rivals(results, found, pairs)
    measures = rival_measures(comparison, pairs)
    measures |= {
        f"{name}.step_seconds": measure(statistics.fmean(one.step_seconds for one in seeds), unit="s")
        for name, seeds in found.items()
    }
    measures |= cost_measures(plain, sizes, rounds=5 if results.smoke else 15)
    ratios = {name: ratio_of(comparison, one, PLAIN) for name, one in contenders.items()}
    print(f"\n{NAME} ({results.verdict}), {len(comparison.seeds)} seeds, 95 % intervals over seeds and tasks")
    print("\n".join(table(measures)), flush=True)
    return benchmark_result(
        NAME,
        ratio=max(ratios.values()),
        goal=None,  # for information: what size it takes
        measures=measures,
        accuracy_over_plain=ratios,
        smallest_as_accurate=smallest_as_accurate(sizes, ratios, measures),
        note=f"latency of one picture, {NUM_NAMES} names, one thread; the ratio is the best accuracy over that of {MATCHED}",
        **results.details,
        **environment("torch", "timm", "onnx", "onnxruntime"),
    )


if __name__ == "__main__":
    sys.exit(main())
