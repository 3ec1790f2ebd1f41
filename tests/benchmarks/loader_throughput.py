"""Decoded samples a second: our loader against webdataset with the same work, webdataset as usual, and the bare work.

JPEGs like photographs, half of 256 and half of 375 pixels on their shorter side, to 224 x 224.  All sides have the same number
of worker processes, a core less than the machine has, because somebody must take the batches; ours also checks the hash of
every picture and keeps the exact order.  The bare loop decodes and varies bytes that lie in memory, and does nothing else.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from tests.loader_peer import same_work, usual
from tests.photographs import photograph
from tests.result import benchmark_arguments, benchmark_result, environment, interleaved, measure, spread
from tests.unit.shard_helpers import Sample, sample, write_shards
from training.augment import augmented
from training.config import TrainConfig
from training.data import TrainingBatches
from training.shard_reader import open_shards

BATCH = 64
SIZES = [(342, 256), (500, 375)]
WARM_UP_BATCHES = 12  # more than are read ahead


def main() -> int:
    arguments = benchmark_arguments(__doc__.splitlines()[0])
    num_pictures, num_samples, num_batches, rounds = (32, 1024, 12, 2) if arguments.quick else (256, 8192, 48, 7)
    torch.set_num_threads(1)
    workers = max(1, (os.cpu_count() or 1) - 1)
    config = TrainConfig(
        model="hyperclip_b0",
        num_steps=1,
        contrastive_batch_size=BATCH,
        loader_workers=workers,
        templates=("{}", "a photo of {}"),
    )
    pictures = [photograph(seed, width=SIZES[seed % 2][0], height=SIZES[seed % 2][1]) for seed in range(num_pictures)]
    with tempfile.TemporaryDirectory(prefix="hyperclip-loader-throughput-") as temporary:
        folder = Path(temporary)
        write_shards(folder, samples(pictures, num_samples), samples_per_shard=512)
        loader = TrainingBatches(open_shards(str(folder)), config, rank=0, world_size=1)
        found = interleaved(
            {
                "hyperclip": lambda: rate(loader.starting_at(0), num_batches),
                "webdataset_same_work": lambda: rate(same_work(folder, config, workers=workers), num_batches),
                "webdataset_usual": lambda: rate(usual(folder, config, workers=workers), num_batches),
                "bare_loop": lambda: bare_rate(pictures, config, workers=workers, count=num_batches * BATCH),
            },
            rounds=rounds,
        )
    ratios = {peer: median_ratio(found["hyperclip"], found[peer]) for peer in found if peer != "hyperclip"}
    goals = {"webdataset_same_work": 1.0, "webdataset_usual": 1.5, "bare_loop": 0.9}
    return benchmark_result(
        "loader_throughput",
        ratio=ratios["webdataset_same_work"],
        goal=(">=", 1.0),
        measures={
            **{f"over_{peer}": measure(ratios[peer], goal=(">=", goal), unit="ratio") for peer, goal in goals.items()},
            **{name: measure(float(np.median(values)), unit="samples/s") for name, values in found.items()},
        },
        spread={name: spread(values) for name, values in found.items()},
        sizes={
            "batch": BATCH,
            "batches_a_round": num_batches,
            "workers": workers,
            "image_size": config.preprocess.image_size,
            "pictures": SIZES,
            "mean_bytes": sum(map(len, pictures)) // len(pictures),
        },
        **environment("torch", "torchvision", "webdataset", "simplejpeg", "pillow"),
    )


def rate(batches: Iterator[Any], num_batches: int) -> float:
    """Samples a second, once the workers are up and what they read ahead is used up."""
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    started = perf_counter()
    for _ in range(num_batches):
        next(batches)  # a stream that ended would be measured as a fast one
    return num_batches * BATCH / (perf_counter() - started)


def bare_rate(pictures: list[bytes], config: TrainConfig, *, workers: int, count: int) -> float:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return sum(pool.starmap(bare_loop, [(pictures, config, count // workers)] * workers, chunksize=1))


def bare_loop(pictures: list[bytes], config: TrainConfig, count: int) -> float:
    rng = np.random.default_rng(0)
    side = config.preprocess.image_size
    pixels = np.empty((side, side, 3), dtype=np.uint8)
    started = perf_counter()
    for picture in islice(cycle(pictures), count):
        augmented(picture, config.augment, out=pixels, rng=rng)
    return count / (perf_counter() - started)


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Round by round, because the machine's speed is shared by the sides of a round only."""
    return float(np.median([own / other for own, other in zip(ours, theirs, strict=True)]))


def samples(pictures: list[bytes], count: int) -> Iterator[Sample]:
    words = [
        "a",
        "red",
        "panda",
        "on",
        "the",
        "branch",
        "of",
        "an",
        "old",
        "tree",
        "in",
        "the",
        "rain",
        "of",
        "a",
        "summer",
        "evening",
    ]
    for number in range(count):
        picture = pictures[number % len(pictures)]
        yield sample(picture, number, caption=" ".join([*words[: 4 + number % len(words)], str(number)]))


if __name__ == "__main__":
    sys.exit(main())
