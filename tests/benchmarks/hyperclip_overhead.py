"""Samples per second of HyperCLIP over those of its SigLIP twin: same batches, optimizer and precision, in turns.

Two models: EfficientNet-B0 with everything in the proportions of full size, and the quickstart.  Each under one group (the
paper's reading) and under several; every group is conditioned but the dropped ones.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import torch

from tests.benchmarks._train_step import (
    THREADS,
    Captions,
    b0_in_proportion,
    make_batches,
    names_in_templates,
    our_step,
    samples_per_second,
    web_like,
)
from tests.result import benchmark_arguments, benchmark_result, environment, interleaved, measure, spread
from training.conditioning_config import ConditioningConfig
from training.model.hyperclip import HyperClipConfig
from training.model.registry import hyperclip_quickstart, siglip_twin
from training.objective import LocalBatch

NAME = "hyperclip_overhead"
GOAL = 0.95
B0_BATCH = {False: 64, True: 32}


def one_and_several(
    config: HyperClipConfig, groups: tuple[int, ...], captions: Captions, *, batch_size: int, rounds: int, batches: int
) -> dict[str, list[float]]:
    """Samples per second of the twin, of HyperCLIP with one group, and with several."""
    data = make_batches(batches, batch_size=batch_size, image_size=config.image.image_size, captions=captions)
    steps = {
        "twin": our_step(siglip_twin(config), ConditioningConfig()),
        "one_group": our_step(config, ConditioningConfig()),
        "groups": our_step(config, ConditioningConfig(groups=groups)),
    }
    for step in steps.values():
        step(data[0])  # first kernels, the optimizer's moments
    # one batch a turn: the sides follow each other within seconds, so that the machine is equally fast for all of them
    return interleaved({name: partial(_one_batch, step, cycle(data)) for name, step in steps.items()}, rounds=rounds * batches)


def _one_batch(step: Callable[[LocalBatch], torch.Tensor], data: Iterator[LocalBatch]) -> float:
    return samples_per_second(step, [next(data)])


def main() -> int:
    quick = benchmark_arguments(__doc__ or NAME).quick
    torch.set_num_threads(THREADS)
    found = {
        "b0": one_and_several(
            b0_in_proportion(),
            (1, 4, 16),
            web_like,
            batch_size=B0_BATCH[quick],
            rounds=2 if quick else 8,
            batches=1 if quick else 3,
        ),
        "quickstart": one_and_several(
            hyperclip_quickstart(), (2, 4), names_in_templates, batch_size=128, rounds=3 if quick else 12, batches=4
        ),
    }
    ratios = {
        f"{model}_{side}": statistics.median(ours / twin for ours, twin in zip(rates[side], rates["twin"], strict=True))
        for model, rates in found.items()
        for side in ("one_group", "groups")
    }
    return benchmark_result(
        NAME,
        ratio=min(ratio for name, ratio in ratios.items() if name.startswith("b0")),
        goal=(">=", GOAL),
        measures={name: measure(ratio, goal=(">=", GOAL) if name.startswith("b0") else None) for name, ratio in ratios.items()},
        samples_per_second={
            f"{model}_{side}": spread(values) for model, rates in found.items() for side, values in rates.items()
        },
        sizes={
            "b0": {
                "batch": B0_BATCH[quick],
                "image_size": 96,
                "text": "384 wide, 8 layers",
                "groups": [1, 4, 16],
                "captions": "web-like",
            },
            "quickstart": {"batch": 128, "image_size": 48, "text": "128 wide, 2 layers", "groups": [2, 4]},
            "threads": THREADS,
        },
        note="the quickstart's hypernetwork is as deep and wide as its text tower, so its ratio is for information",
        **environment("torch", "timm"),
    )


if __name__ == "__main__":
    sys.exit(main())
