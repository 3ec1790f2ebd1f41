"""Kill the loader at random steps and continue with other numbers of ranks and loader workers: the stream must not notice.

Each fault is real: a process starts the loaders of the ranks, with workers of their own, and runs them for some steps; then all
of it is killed with SIGKILL in the middle of reading ahead, with some ranks a batch further than others.  What survives is one
number, the batch to continue with; another topology continues from there.  The stream put together this way is compared
with an uninterrupted one, sample by sample: number, varied pixels and tokens.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from tests.result import chaos_arguments, chaos_result, environment, measure, spread
from tests.unit.data_helpers import picture
from tests.unit.shard_helpers import Sample, sample, write_shards
from training.config import TrainConfig
from training.data import TrainingBatches
from training.objective import LocalBatch
from training.shard_reader import open_shards

BATCH = 12  # 1, 2 and 3 ranks divide it
NUM_SAMPLES = 10 * BATCH  # whole batches, because ranks get a batch in the order of its samples, not of its positions
SAMPLES_PER_SHARD = 50  # the last shard is shorter
MAX_STEPS = 12
CONTEXT = multiprocessing.get_context("forkserver")
TOPOLOGIES = [(ranks, workers) for ranks in (1, 2, 3) for workers in (0, 1, 3)]

SampleSeen = tuple[int, str]
"""Number of a sample, and a hash of all that the loader made of it."""


class Incarnation(NamedTuple):
    """One start of the loader."""

    ranks: int
    workers: int
    steps: int
    """Batches that every rank has taken."""
    ahead: int
    """Ranks that have taken one more when all are killed."""


def main() -> int:
    CONTEXT.set_forkserver_preload(["training.data"])  # one import of torch for all starts
    arguments = chaos_arguments(__doc__.splitlines()[0], count=200, quick_count=12)
    plan = incarnations(arguments.count + 1, np.random.default_rng(arguments.seed))
    num_batches = sum(one.steps for one in plan)
    with tempfile.TemporaryDirectory(prefix="hyperclip-loader-topology-") as temporary:
        write_shards(Path(temporary), samples(), samples_per_shard=SAMPLES_PER_SHARD)
        whole = TrainingBatches(open_shards(temporary), config(workers=0), rank=0, world_size=1).starting_at(0)
        expected = [seen for batch in islice(whole, num_batches) for seen in contents(batch)]
        found: list[SampleSeen] = []
        killed, seconds, differing = 0, [], 0
        for number, one in enumerate(plan):
            started = perf_counter()
            part, victims = run_and_kill(temporary, one, first_batch=len(found) // BATCH)
            seconds.append(perf_counter() - started)
            differing += part != expected[len(found) : len(found) + len(part)]
            found += part
            killed += victims
            print(f"  {number + 1} of {len(plan)}: {one}, {victims} workers killed", file=sys.stderr, flush=True)
    not_once = [epoch for epoch, numbers in enumerate(epochs(found)) if numbers != list(range(NUM_SAMPLES))]
    faults = len(plan) - 1  # after the last incarnation nothing continues
    pairs = {(one[:2], other[:2]) for one, other in pairwise(plan)}
    return chaos_result(
        "loader_topology",
        injected=faults,
        lost=len(set(expected) - set(found)),
        failed=differing + len(not_once) + (found != expected),
        measures={
            "incarnations_that_differ": measure(differing, goal=("<=", 0)),
            "epochs_not_exactly_once": measure(len(not_once), goal=("<=", 0)),
            "whole_epochs": measure(len(found) // NUM_SAMPLES, goal=(">=", 1)),
            "changes_of_topology_seen": measure(len(pairs), unit=f"of {len(TOPOLOGIES) ** 2} pairs"),
            "workers_killed": measure(killed, goal=(">=", 1)),
        },
        samples=len(found),
        batch=BATCH,
        seed=arguments.seed,
        seconds_per_incarnation=spread(seconds),
        **environment("torch"),
    )


def incarnations(count: int, rng: np.random.Generator) -> list[Incarnation]:
    """Topologies in random order, each as often as the others."""
    topologies = [TOPOLOGIES[place] for _ in range(-(-count // len(TOPOLOGIES))) for place in rng.permutation(len(TOPOLOGIES))]
    return [
        Incarnation(ranks, workers, steps=int(rng.integers(1, MAX_STEPS)), ahead=int(rng.integers(ranks)))
        for ranks, workers in topologies[:count]
    ]


def run_and_kill(shards: str, one: Incarnation, *, first_batch: int) -> tuple[list[SampleSeen], int]:
    """What the ranks together saw, in the order of the stream, and how many worker processes were killed."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=run_until_killed, args=(shards, one, first_batch, sender))
    process.start()
    sender.close()  # so that a process that dies by itself ends the wait for what it saw
    seen, workers = receiver.recv()
    assert workers == one.ranks * one.workers, f"{workers} worker processes for {one}"
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return seen, workers


def run_until_killed(shards: str, one: Incarnation, first_batch: int, sender: Connection) -> None:
    os.setsid()  # a group of its own, which its workers are in
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores: meant
    torch.set_num_threads(1)
    reader = open_shards(shards)
    ranks = [
        TrainingBatches(reader, config(workers=one.workers), rank=rank, world_size=one.ranks).starting_at(first_batch)
        for rank in range(one.ranks)
    ]
    seen = [each for _ in range(one.steps) for rank in ranks for each in contents(next(rank))]
    for rank in ranks[: one.ahead]:
        next(rank)  # taken by some ranks only: the step was not finished, and is done again
    sender.send((seen, len(multiprocessing.active_children())))
    signal.pause()


def contents(batch: LocalBatch) -> Iterator[SampleSeen]:
    for row, number in enumerate(batch.sample_index.tolist()):
        digest = sha256()
        for value in vars(batch).values():
            digest.update(value[row].contiguous().numpy().tobytes())
        yield number, digest.hexdigest()


def epochs(found: list[SampleSeen]) -> Iterator[list[int]]:
    """The sorted numbers of the samples of each whole epoch."""
    for start in range(0, len(found) - NUM_SAMPLES + 1, NUM_SAMPLES):
        yield sorted(number for number, _ in found[start : start + NUM_SAMPLES])


def samples() -> Iterator[Sample]:
    pictures = [picture(number, image_format="JPEG") for number in range(20)]
    for number in range(NUM_SAMPLES):
        yield sample(pictures[number % 20], number, captions=[f"one {number}", f"two {number}"], width=48, height=48)


def config(*, workers: int) -> TrainConfig:
    return TrainConfig(
        model="hyperclip_test",
        num_steps=1,
        contrastive_batch_size=BATCH,
        loader_workers=workers,
        templates=("{}", "a {}"),
        seed=3,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
