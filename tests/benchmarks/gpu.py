"""Training throughput on one GPU: HyperCLIP against its SigLIP twin, open_clip, its own loader, and ZeRO against DDP.

Needs a CUDA device; without one it measures nothing and says so (exit status 2).  Imports torch, timm and DeepSpeed, open_clip
for its side, and neither Ray nor MLflow.  open_clip gets its best settings: bf16 autocast, channels last, fused AdamW, with and
without torch.compile, and the faster of the two counts; its texts are padded to 77 tokens, as it trains.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from tests.benchmarks._gpu_sides import Sizes, Step, make_sides, write_pictures
from tests.result import benchmark_arguments, benchmark_result, environment, interleaved, measure, spread

NAME = "gpu"
GOAL = (">=", 0.95)
NO_GPU_STATUS = 2

FULL = Sizes("b0", batch=512, steps=20, rounds=5, num_pictures=8192, loader_workers=max(1, (os.cpu_count() or 2) - 1))
QUICK = dataclasses.replace(FULL, batch=256, steps=8, rounds=2, num_pictures=1024)


def main() -> int:
    arguments = benchmark_arguments(__doc__ or "")
    if not torch.cuda.is_available():
        reason = "no CUDA device: nothing was measured; run this on a machine with a GPU"
        print(reason, file=sys.stderr)
        print(json.dumps({"name": NAME, "ratio": None, "goal": {"op": ">=", "value": 0.95}, "ok": False, "reason": reason}))
        return NO_GPU_STATUS
    with process_group("nccl"):
        return run(QUICK if arguments.quick else FULL, torch.device("cuda", torch.cuda.current_device()))


def run(sizes: Sizes, device: torch.device) -> int:
    """Measure every side and print the result; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="hyperclip-gpu-") as folder:
        write_pictures(Path(folder), num_pictures=sizes.num_pictures)
        sides = make_sides(sizes, Path(folder), device)
        rounds = interleaved({name: timed(step, sizes, device) for name, step in sides.items()}, rounds=sizes.rounds)
    rate = {name: max(values) if name.startswith("open_clip") else median(values) for name, values in rounds.items()}
    open_clip = max(value for name, value in rate.items() if name.startswith("open_clip"))
    ratio = rate["hyperclip"] / rate["siglip"]
    return benchmark_result(
        NAME,
        ratio=ratio,
        goal=GOAL,
        measures={
            "hyperclip_over_siglip": measure(ratio, goal=GOAL),
            "hyperclip_over_open_clip": measure(rate["hyperclip"] / open_clip, goal=(">=", 1.0)),
            "siglip_over_open_clip": measure(rate["siglip"] / open_clip),
            "loader_over_synthetic": measure(rate["hyperclip_fed_by_loader"] / rate["hyperclip"], goal=(">=", 0.95)),
            "zero_1_over_ddp": measure(rate["hyperclip"] / rate["ddp"]),
            "zero_2_over_ddp": measure(rate["zero_2"] / rate["ddp"]),
            **{f"{name}_samples_per_second": measure(value, unit="samples/s") for name, value in rate.items()},
        },
        spread={name: spread(values) for name, values in rounds.items()},
        sizes=dataclasses.asdict(sizes),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        world_size=dist.get_world_size(),
        **environment("torch", "timm", "deepspeed", "open_clip_torch"),
    )


def timed(step: Step, sizes: Sizes, device: torch.device) -> Callable[[], float]:
    """Samples per second over some steps, after warming up once."""
    warm = False

    def measured() -> float:
        nonlocal warm
        for _ in range(1 if warm else 3):
            step()
        warm = True
        synchronize(device)
        started = time.perf_counter()
        for _ in range(sizes.steps):
            step()
        synchronize(device)
        return sizes.batch * sizes.steps / (time.perf_counter() - started)

    return measured


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """Of one process: the figures are those of one GPU."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(values: list[float]) -> float:
    return float(torch.tensor(values).median())


if __name__ == "__main__":
    sys.exit(main())
