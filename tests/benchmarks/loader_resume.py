"""Time to the first batch in the middle of an epoch: ours seeks, webdataset goes through what lies before.

A million tiny pictures in plain tars (2.1 GB in the temporary folder, removed afterwards).  Ours opens the folder, reads and
checks the manifest, makes the order and loads the batch at 50 % of the epoch.  webdataset skips the first half undecoded and
unshuffled, which is its fastest way, and loads the same number of samples with the same functions.  Both in this process,
without workers: starting those costs both the same.
"""

import gc
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import torch

from tests.loader_peer import first_batch_after
from tests.result import benchmark_arguments, benchmark_result, environment, interleaved, measure, seconds, spread
from tests.unit.data_helpers import picture
from tests.unit.shard_helpers import Sample, sample, write_shards
from training.config import TrainConfig
from training.data import TrainingBatches
from training.shard_reader import open_shards

BATCH = 256
SAMPLES_PER_SHARD = 10_000


def main() -> int:
    arguments = benchmark_arguments(__doc__.splitlines()[0])
    num_samples, rounds = (20_000, 3) if arguments.quick else (1_000_000, 3)
    torch.set_num_threads(1)
    config = TrainConfig(model="hyperclip_test", num_steps=1, contrastive_batch_size=BATCH, loader_workers=0)
    batch_number = num_samples // 2 // BATCH
    with tempfile.TemporaryDirectory(prefix="hyperclip-loader-resume-") as temporary:
        folder = Path(temporary)
        started = perf_counter()
        manifest = write_shards(folder, samples(num_samples), samples_per_shard=min(SAMPLES_PER_SHARD, num_samples // 4))
        print(f"  {num_samples:,} samples written in {perf_counter() - started:.0f} s", file=sys.stderr, flush=True)

        def ours() -> None:
            loader = TrainingBatches(open_shards(str(folder)), config, rank=0, world_size=1)
            batch = next(loader.starting_at(batch_number))
            assert len(batch.sample_index.unique()) == BATCH

        def theirs() -> None:
            batch = first_batch_after(folder, config, skipped=batch_number * BATCH)
            assert len(batch["images"]) == BATCH

        ours()  # the tokenizer's table and the like, once a process
        found = interleaved({"hyperclip": lambda: timed(ours), "webdataset": lambda: timed(theirs)}, rounds=rounds)
        total_bytes = sum(shard.bytes for shard in manifest.shards)
    own, peer = spread(found["hyperclip"]), spread(found["webdataset"])
    ratio = peer["median"] / own["median"]
    # at the small size there is little to skip: only the time is judged
    goal = (">=", 1.0) if arguments.quick else (">=", 50.0)
    return benchmark_result(
        "loader_resume",
        ratio=ratio,
        goal=goal,
        measures={
            "time_to_first_batch": measure(own["median"], goal=("<=", 1.0), unit="s"),
            "webdataset_time_to_first_batch": measure(peer["median"], unit="s"),
        },
        spread={"hyperclip_s": own, "webdataset_s": peer},
        sizes={"samples": num_samples, "batch": BATCH, "skipped": batch_number * BATCH, "bytes": total_bytes},
        **environment("torch", "webdataset", "simplejpeg", "pillow"),
    )


def timed(work: object) -> float:
    gc.collect()
    return seconds(work)  # type: ignore[arg-type]


def samples(count: int) -> Iterator[Sample]:
    pictures = [picture(number, width=16, height=16, image_format="JPEG") for number in range(64)]
    for number in range(count):
        yield sample(pictures[number % 64], number, width=16, height=16)


if __name__ == "__main__":
    sys.exit(main())
