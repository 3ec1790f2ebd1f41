"""Serving on one GPU: the same answers as on the CPU, and how many pictures a second.

Needs a CUDA device; without one it measures nothing and says so (exit status 2).  Two results, a line each: `serve_gpu_engine`
is of this process alone, without Ray; `serve_gpu` is of the whole service, with two image encoders and the hypernetwork on
shares of the GPU, against the same service on the machine's CPUs, one after the other.  The ratio is that of pictures a second
with EfficientNet-B0 at 224 pixels, 16 pictures a call, 64 calls at a time.

    python -m tests.benchmarks.serve_gpu [--quick]
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from serving.proxy_gate import MAX_PICTURE_CALLS_VARIABLE
from serving.switches import switch_on
from tests.benchmarks._serve_gpu_answers import (
    answers,
    bad_models,
    convolutions,
    golden_difference,
    label_sets,
    pictures,
    reason_of_refusal,
    save_large_model,
    score_difference,
)
from tests.benchmarks._serve_gpu_rates import Rates, Trunk, engine_rates, forward_rates, memory_a_task
from tests.result import benchmark_arguments, benchmark_result, environment, measure, rounded, spread
from training.bundle import GOLDEN_TOLERANCE, load_bundle
from training.shipped import shipped_model_folder

NAME, ENGINE_NAME = "serve_gpu", "serve_gpu_engine"
NO_GPU_STATUS = 2
SAME = 1e-4
"""How far a score may be from that of the CPU."""
COUNTED = 1.1
"""How many times the bytes that `resident_bytes` counts a task may take."""
CONCURRENCY = 64


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    num_tasks: int
    num_pictures: int
    batches: tuple[int, ...]
    trunks: tuple[Trunk, ...]
    seconds: float
    """Of one rate in this process."""
    resident_tasks: int
    load_s: float
    """Of one round of load."""
    rounds: int
    judged: bool = True
    """Whether the ratio of the two services has a goal."""


FULL = Sizes(
    num_tasks=20,
    num_pictures=16,
    batches=(1, 4, 16, 64, 256),
    trunks=(
        Trunk("test_resnet", 48),
        Trunk("efficientnet_b0", 224),
        Trunk("efficientnet_b0", 224, ("norm", "convolution", "pointwise", "projection")),
        Trunk("vit_small_patch16_224", 224),
    ),
    seconds=0.45,
    resident_tasks=1000,
    load_s=4,
    rounds=3,
)
QUICK = replace(FULL, batches=(1, 64), trunks=FULL.trunks[:2], seconds=0.3, load_s=3, rounds=1, judged=False)


def main() -> int:
    arguments = benchmark_arguments((__doc__ or NAME).splitlines()[0])
    if not torch.cuda.is_available():
        reason = "no CUDA device: nothing was measured; run this on a machine with a GPU"
        print(reason, file=sys.stderr)
        print(json.dumps({"name": NAME, "ratio": None, "goal": {"op": ">=", "value": 1}, "ok": False, "reason": reason}))
        return NO_GPU_STATUS
    sizes = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="hyperclip-serve-gpu-") as folder:
        large = Path(folder) / "large"
        save_large_model(large)
        alone = measure_engine(sizes, {"shipped": shipped_model_folder(), "large": large}, Path(folder), device="cuda")
        return max(alone, measure_service(sizes, large, Path(folder), on_gpu=True))


def measure_engine(sizes: Sizes, bundles: dict[str, Path], folder: Path, *, device: str) -> int:
    """The engine in this process; prints its result, returns the exit status."""
    labels, images = label_sets(sizes.num_tasks), pictures(sizes.num_pictures)
    measures: dict[str, Any] = {}
    rates: dict[str, dict[int, float]] = {}
    for name, bundle_folder in bundles.items():
        with convolutions(tf32=False):
            on_device, on_cpu = load_bundle(bundle_folder, device=device), load_bundle(bundle_folder)
        expected = answers(on_cpu, labels, images, batch=64)
        golden = golden_difference(on_device, bundle_folder)
        measures[f"{name}_golden_difference"] = measure(golden, goal=("<=", GOLDEN_TOLERANCE))
        for precision, tf32 in (("float32", False), ("tf32", True)):  # what a replica has, and what torch has by itself
            with convolutions(tf32=tf32):
                found = answers(on_device, labels, images, batch=64)
                rates[f"{name}_{precision}"] = engine_rates(
                    on_device, sizes.batches, num_tasks=sizes.num_tasks, seconds=sizes.seconds
                )
            goal = None if tf32 else ("<=", SAME)
            measures[f"{name}_score_difference_{precision}"] = measure(found.largest_difference(expected), goal=goal)
            measures[f"{name}_feature_difference_{precision}"] = measure(found.feature_difference(expected))
            measures[f"{name}_other_best_label_{precision}"] = measure(found.num_other_best(expected))
            progress(f"{name} in {precision}: scores differ by {found.largest_difference(expected):.2g}")
        few = [batch for batch in sizes.batches if batch <= 64]
        rates[f"{name}_cpu"] = engine_rates(on_cpu, few, num_tasks=sizes.num_tasks, seconds=sizes.seconds)
        if device == "cuda":
            memory = memory_a_task(on_device, num_tasks=sizes.resident_tasks)
            measures[f"{name}_bytes_a_task"] = measure(memory.allocated, unit="B")
            measures[f"{name}_bytes_over_counted"] = measure(memory.allocated / memory.counted, goal=("<=", COUNTED))
    reasons = {
        kind: reason_of_refusal(bad, device=device) for kind, bad in bad_models(bundles["shipped"], folder / "bad").items()
    }
    measures["bad_models_served"] = measure(sum(reason is None for reason in reasons.values()), goal=("<=", 0))
    forwards: dict[str, dict[str, Rates]] = {}
    with convolutions(tf32=False), torch.no_grad():
        for trunk in sizes.trunks:
            forwards[trunk.label] = forward_rates(
                trunk, torch.device(device), sizes.batches, num_tasks=sizes.num_tasks, seconds=sizes.seconds
            )
            progress(f"{trunk.label}: {shown(forwards[trunk.label])}")
    largest, name = sizes.batches[-1], sizes.trunks[-1].label
    return benchmark_result(
        ENGINE_NAME,
        ratio=forwards[name]["per_image"][largest] / forwards[name]["one_task"][largest],
        goal=None,
        measures=measures,
        refused={kind: reason and reason.rpartition(": ")[2] for kind, reason in reasons.items()},
        engine_pictures_per_s={side: whole(found) for side, found in rates.items()},
        forward_pictures_per_s={
            trunk: {side: whole(found) for side, found in all_.items()} for trunk, all_ in forwards.items()
        },
        device=device_name(device),
        sizes=asdict(sizes),
        **environment("torch", "timm"),
    )


def measure_service(sizes: Sizes, large: Path, folder: Path, *, on_gpu: bool) -> int:
    """The whole service, first on the GPU and then on the CPUs; prints the result, returns the exit status.

    Args:
        on_gpu: False runs both on the CPU, to see that it runs.
    """
    switch_on()  # before Ray Serve is imported
    os.environ.setdefault(MAX_PICTURE_CALLS_VARIABLE, str(2 * CONCURRENCY))  # the callers are no overload here
    from infra.cluster import ClusterConfig, connected
    from tests.benchmarks import _serve_gpu_service as service

    labels, images = label_sets(sizes.num_tasks), pictures(sizes.num_pictures)
    bundles = {"shipped": shipped_model_folder(), "large": large}
    sides = {"gpu": service.NUM_ENCODERS, "cpu": service.num_cpu_encoders()}
    measures: dict[str, Any] = {}
    rates: dict[str, list[float]] = {}
    not_on_gpu: list[str] = []
    with connected(ClusterConfig()):
        for name, bundle in bundles.items():
            expected = answers(load_bundle(bundle), labels, images, batch=64)
            for side, num_encoders in sides.items():
                config = service.service_config(
                    bundle, folder / f"{name}-{side}", on_gpu=on_gpu and side == "gpu", num_encoders=num_encoders
                )
                with service.served(config, labels) as running:
                    before = service.replica_uses()
                    difference = score_difference(running.scores(images), expected.scores)
                    measures[f"{name}_{side}_score_difference"] = measure(difference, goal=("<=", SAME))
                    for per_call in (1, 16):
                        key = f"{name}_{side}_{per_call}"
                        loads = [
                            running.load(images, per_call=per_call, concurrency=CONCURRENCY, seconds=seconds)
                            for seconds in (1, *[sizes.load_s] * sizes.rounds)  # the first second warms
                        ][1:]
                        rates[key] = [per_call * load.rate for load in loads]
                        measures[f"{key}_pictures_per_s"] = measure(spread(rates[key])["median"], unit="1/s")
                        for percent in (50, 99):
                            value = spread([load.percentile_ms(percent / 100) for load in loads])["median"]
                            measures[f"{key}_p{percent}"] = measure(value, unit="ms")
                        failures = [failure for load in loads for failure in load.failures]
                        measures[f"{key}_failures"] = measure(len(failures), goal=("<=", 0))
                        progress(f"{key}: {whole(dict(enumerate(rates[key])))} pictures/s {failures[:1]}")
                    if side == "gpu":
                        not_on_gpu += idle(before, service.replica_uses())
    measures["replicas_not_on_gpu"] = measure(len(not_on_gpu), goal=("<=", 0))
    ratio = spread(rates["large_gpu_16"])["median"] / spread(rates["large_cpu_16"])["median"]
    return benchmark_result(
        NAME,
        ratio=ratio,
        goal=(">=", 1) if sizes.judged else None,
        measures=measures,
        pictures_per_s={side: spread(found) for side, found in rates.items()},
        not_on_gpu=not_on_gpu,
        encoder_replicas=sides,
        device=device_name("cuda" if on_gpu else "cpu"),
        **environment("ray", "torch", "timm"),
    )


def idle(before: Sequence[Any], after: Sequence[Any]) -> list[str]:
    """What is wrong with replicas that hold a model: nothing of it on the GPU, or nothing computed there meanwhile."""
    allocations = {use.name: use.allocations for use in before}
    found = []
    for deployment in ("ImageEncoder", "Hypernetwork"):
        uses = [use for use in after if use.deployment == deployment]
        if not uses:
            found.append(f"no {deployment} runs")
        for use in uses:
            if not use.allocated:
                found.append(f"{use.name} holds nothing on the GPU")
            elif deployment == "ImageEncoder" and use.allocations <= allocations.get(use.name, 0):
                found.append(f"{use.name} has computed nothing on the GPU")
    return found


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def whole(rates: dict[int, float]) -> dict[int, float]:
    return {batch: rounded(rate) for batch, rate in rates.items()}


def shown(rates: dict[str, Rates]) -> str:
    return ", ".join(f"{side} {max(found.values()):.0f}/s" for side, found in rates.items())


def progress(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
