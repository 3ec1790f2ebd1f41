"""How much of what direct tuning gains for a topic do names alone reach?

From the encoder that a HyperCLIP is without names, for each topic that the unseen artist has as well: norms, projection,
low-rank convolutions, all weights and what HyperCLIP generates are tuned directly on the training pictures of the topic's
names.  Then the same for all topics at once, a constant: what of the gain is capacity.  All are judged on same-topic tasks of
the unseen artist, each topic's parameters on its own pictures and, swapped, on another topic's.  Last, the share of that gain,
over the encoder without names and over the constant, that HyperCLIP reaches on the same tasks, which saw their names and no
picture.

    python -m tests.benchmarks.specialization_ceiling --pictures FOLDER   the figures that count, on the models of the sweep
    python -m tests.benchmarks.specialization_ceiling --hyperclip BUNDLE --pictures FOLDER
    python -m tests.benchmarks.specialization_ceiling                     a smoke run on the bundled sample
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.errors import BadInputError
from tests.benchmarks._ceiling_shares import HALF, ceiling_measures
from tests.benchmarks._direct_tuning import Topic, Tuned, topics_of, tune, ways_to_tune
from tests.benchmarks._gain import HYPERCLIP, table
from tests.benchmarks._neutral_twin import neutral_twin
from tests.benchmarks._sweep_of_results import FAMILY, TRAIN, results_of, sweep_arguments, write_sample_folder
from tests.result import benchmark_result, environment
from training.bundle import Bundle, load_bundle
from training.evaluation.encode import Job, PictureEncoder
from training.evaluation.evaluation_set import EvaluationSet, decoded
from training.evaluation.family_scores import DrawnFamily
from training.evaluation.model_on_set import best_names
from training.evaluation.parquet_set import parquet_set
from training.evaluation.tasks import LabelSetTask
from training.evaluation.zero_shot import EvaluationConfig, draw_families
from training.model.image_encoder import ImageEncoderConfig
from training.preprocess import PreprocessConfig
from training.specialize import encode_labels

NAME = "specialization_ceiling"
MIN_NAMES = 20
"""Of a topic among the training pictures."""
CONSTANT_STEPS = 3
"""Times as many steps for the constant, which has all topics to serve."""
NUM_TASKS, WAYS = 150, (10, 50)


@dataclass(frozen=True)
class Sizes:
    steps: int
    batch: int
    topics: int | None


def chosen_bundles(arguments: argparse.Namespace) -> tuple[list[Bundle], Path, bool]:
    """HyperCLIPs, the folder of pictures, and whether it is a smoke run."""
    if arguments.hyperclip:
        folder = arguments.pictures or write_sample_folder(arguments.workspace / "sample")
        return [load_bundle(path) for path in arguments.hyperclip], folder, arguments.quick or arguments.pictures is None
    results = results_of(arguments)
    return results.bundles(HYPERCLIP), results.folder, results.smoke


@dataclass(frozen=True)
class Held:
    """The pictures of the unseen artist, and the tasks on them."""

    pictures: EvaluationSet
    families: list[DrawnFamily]
    pixels: np.ndarray
    """(M, S, S, 3) uint8."""

    @staticmethod
    def of(pictures: EvaluationSet, config: PreprocessConfig, *, num_tasks: int) -> "Held":
        settings = EvaluationConfig(ways=WAYS, kinds=("same_topic",), num_tasks=num_tasks)
        families, _ = draw_families(pictures, settings)
        return Held(pictures, families, decoded(pictures, config))

    @property
    def topics(self) -> list[str]:
        """Those with tasks, the one with the most first."""
        counts = Counter(task.topic for drawn in self.families for task in drawn.tasks if task.topic is not None)
        return sorted(counts, key=lambda topic: (-counts[topic], topic))

    def rows_of(self, topic: str) -> np.ndarray:
        """Pictures of a topic."""
        reading = self.pictures.objects
        found = [reading.topic_of_class[number] == topic for number in reading.class_of_picture.tolist()]
        return np.flatnonzero(found)

    def names(self, bundle: Bundle) -> Tensor:
        """(C, D) of all names."""
        return encode_labels(bundle, self.pictures.objects.names, bundle.templates)


def tuned_features(
    twin: Bundle, image: ImageEncoderConfig, topics: Sequence[Topic], held: Held, sizes: Sizes, *, seed: int
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """(M, D) of the held pictures by contender, under what was tuned for their topic, for another and for all; and how many
    values each way tunes.  Rows of other topics are zero."""
    ways = ways_to_tune(image, image.generates)
    features: dict[str, Tensor] = {}

    def fill(contender: str, tuned: Tuned, topic: str) -> None:
        rows = held.rows_of(topic)
        encoded = tuned.encode(held.pixels[rows], twin)
        space = features.setdefault(contender, torch.zeros(len(held.pixels), encoded.shape[1]))
        space[torch.from_numpy(rows)] = encoded

    def tuned_on(chosen: Sequence[Topic], title: str, steps: int) -> dict[str, Tuned]:
        progress = Progress(f"seed {seed}, {title}", steps)
        return tune(twin, image, ways, chosen, num_steps=steps, batch_size=sizes.batch, seed=seed, progress=progress)

    for number, topic in enumerate(topics):
        title = f"topic {number + 1} of {len(topics)}, {topic.name}, {len(topic.labels)} names"
        for way, one in tuned_on([topic], title, sizes.steps).items():
            fill(f"{way}.topic", one, topic.name)
            fill(f"{way}.swapped", one, topics[(number + 1) % len(topics)].name)
    constant = tuned_on(topics, f"all {len(topics)} topics", CONSTANT_STEPS * sizes.steps)
    for way, one in constant.items():
        for topic in topics:
            fill(f"{way}.constant", one, topic.name)
    return features, {way: one.num_values for way, one in constant.items()}


def accuracies(
    twin: Bundle, hyperclip: Bundle, features: Mapping[str, Tensor], topics: Sequence[Topic], held: Held
) -> dict[str, dict[str, list[float]]]:
    """Accuracy on each task of the topics, by family and contender."""
    plain, ours = PictureEncoder(twin, held.pixels), PictureEncoder(hyperclip, held.pixels)
    names, our_names = held.names(twin), held.names(hyperclip)
    spaces = {"twin": plain.neutral, **features}
    kept = {topic.name for topic in topics}
    found: dict[str, dict[str, list[float]]] = {}
    for drawn in held.families:
        tasks = [task for task in drawn.tasks if task.topic in kept]
        values = {
            contender: [_right(space[list(task.pictures)], names, task) for task in tasks]
            for contender, space in spaces.items()
        }
        for contender, shift in (("hyperclip", 0), ("hyperclip.swapped", 1)):
            jobs = [
                Job(our_names[list(tasks[place - shift].classes)], np.array(task.pictures)) for place, task in enumerate(tasks)
            ]
            values[contender] = [_right(seen, our_names, task) for seen, task in zip(ours.under(jobs), tasks, strict=True)]
        found[drawn.family.slug] = values
    return found


def _right(features: Tensor, names: Tensor, task: LabelSetTask) -> float:
    """Share of the pictures (B, D) of a task whose best name is the right one."""
    places, _ = best_names(features, names[list(task.classes)])
    return float((places == np.array(task.targets)).mean())


class Progress:
    """A line every few seconds, to standard error."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._told = title, total, time.monotonic()

    def __call__(self, done: int, losses: Mapping[str, float]) -> None:
        if done == self._total or time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            shown = ", ".join(f"{way} {loss:.2f}" for way, loss in losses.items())
            print(f"  {self._title}: step {done} of {self._total}, loss {shown}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sweep_arguments(parser)
    parser.add_argument("--hyperclip", type=Path, nargs="+", default=[], help="bundles; those of the sweep when absent")
    parser.add_argument("--topics", type=int, help="at most so many topics")
    parser.add_argument("--steps", type=int, help="for each topic; three times as many for the constant")
    arguments = parser.parse_args()
    hyperclips, folder, smoke = chosen_bundles(arguments)
    twins = [neutral_twin(one) for one in hyperclips]
    small = arguments.quick or arguments.pictures is None
    sizes = Sizes(
        steps=arguments.steps or (10 if arguments.quick else 40 if small else 100),
        batch=32 if arguments.quick else 64,
        topics=arguments.topics or (2 if arguments.quick else None),
    )
    training = parquet_set([str(path) for path in sorted(folder.glob(TRAIN))])
    pictures = parquet_set([str(folder / FAMILY)])
    held = Held.of(pictures, twins[0].preprocess, num_tasks=20 if arguments.quick else NUM_TASKS)
    of_seeds: list[dict[str, dict[str, list[float]]]] = []
    num_values: dict[str, int] = {}
    for seed, (twin, hyperclip) in enumerate(zip(twins, hyperclips, strict=True)):
        topics = topics_of(twin, training, held.topics, min_names=MIN_NAMES)[: sizes.topics]
        if len(topics) < 2:
            raise BadInputError(f"{len(topics)} topics have {MIN_NAMES} names among the training pictures; a swap needs two")
        features, num_values = tuned_features(twin, hyperclip.model.config.image, topics, held, sizes, seed=seed)
        of_seeds.append(accuracies(twin, hyperclip, features, topics, held))
    measures, ratio = ceiling_measures(of_seeds, judged=not smoke)
    print(f"\n{NAME} ({'smoke' if smoke else 'full'}), {len(hyperclips)} seeds, 95 % intervals over seeds and tasks")
    print("\n".join(table(measures)), flush=True)
    details: dict[str, Any] = {
        "verdict": "smoke" if smoke else "full",
        "pictures": str(folder),
        "steps": sizes.steps,
        "batch": sizes.batch,
        "values_tuned": num_values,
        "bundles": [one.digest[:12] for one in hyperclips],
    }
    return benchmark_result(
        NAME,
        ratio=ratio,
        goal=None if smoke else (">=", HALF),
        measures=measures,
        **details,
        **environment("torch", "timm"),
    )


if __name__ == "__main__":
    sys.exit(main())
