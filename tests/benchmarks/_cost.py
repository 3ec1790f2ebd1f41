"""What specialization costs in training and on a device, and that the order of the names changes nothing."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.errors import BadInputError
from tests.benchmarks._on_device import passes
from tests.benchmarks._sweep_of_results import Results
from tests.benchmarks._train_step import names_in_templates
from tests.benchmarks.hyperclip_overhead import one_and_several
from tests.result import interleaved, measure
from training.architecture import GenerationConfig, architecture
from training.bundle import Bundle
from training.evaluation.parquet_set import parquet_names
from training.export import export_package
from training.metrics_log import read_metrics
from training.model.hyperclip import HyperClip
from training.specialize import specialize

NUM_NAMES = 50
ROUNDING = 1e-4
"""Of scores between 0 and 1: float32 sums in another order."""
SAME_SIZE, SAME_LATENCY = 1.01, 1.05
"""The two files differ in what is written about them (labels, digest); two identical programs differ by some per cent."""


def same_in_any_order(bundles: Sequence[Bundle], pictures: Path) -> dict[str, dict[str, Any]]:
    """Largest difference of a score when the same names are given in another order; a repeated name is refused.

    Args:
        bundles: with a hypernetwork.
        pictures: parquet with the names.
    """
    names = list(dict.fromkeys(parquet_names([str(pictures)]).names))[:NUM_NAMES]
    order = np.random.default_rng(0).permutation(len(names))
    largest, refused = 0.0, 0
    for bundle in bundles:
        side = bundle.preprocess.image_size
        images = torch.randn(64, 3, side, side, generator=torch.Generator().manual_seed(0))
        plain = specialize(bundle, names).scores(bundle, images).softmax
        turned = specialize(bundle, [names[place] for place in order]).scores(bundle, images).softmax
        largest = max(largest, (plain[:, order] - turned).abs().max().item())
        try:
            specialize(bundle, [*names, names[0]])
        except BadInputError:
            refused += 1
    return {
        "order_changes_a_score_by": measure(largest, goal=("<=", ROUNDING)),
        "models_that_refuse_a_repeated_name": measure(refused, goal=(">=", len(bundles))),
    }


def cost_measures(results: Results, *, hyperclip: str, matched: str) -> dict[str, dict[str, Any]]:
    """Step time, parameters, and the specialized encoder beside a plain one on ONNX Runtime."""
    training = results.runs(hyperclip)[0].config.training
    ours, plain = results.bundles(hyperclip)[0], results.bundles(matched)[0]
    found = {
        "step_time_twin_over_hyperclip_norms": measure(_step_ratio(training.model, rounds=2 if results.smoke else 12)),
        "step_seconds_siglip": measure(_step_seconds(results, matched), unit="s"),
        "step_seconds_hyperclip": measure(_step_seconds(results, hyperclip), unit="s"),
        **{f"parameters_{part}": measure(count) for part, count in parameters_of(ours.model).items()},
        "generated_values": measure(sum(ours.model.num_generated.values())),
        "bytes_of_a_task_in_half_precision": measure(2 * sum(ours.model.num_generated.values()), unit="bytes"),
    }
    return found | _on_a_device(ours, plain, rounds=5 if results.smoke else 15)


def parameters_of(model: HyperClip) -> dict[str, int]:
    """Parameters by part; what only deltas need counts with the hypernetwork."""
    parts = {"image_encoder": 0, "text_encoder": 0, "hypernetwork": 0}
    for name, value in model.named_parameters():
        part = "hypernetwork" if name.endswith(".read") else name.partition(".")[0]
        if part in parts:
            parts[part] += value.numel()
    return parts


def _step_ratio(model: str, *, rounds: int) -> float:
    """Steps of HyperCLIP a second over those of its twin, nothing frozen, norms only, the way of hyperclip_overhead."""
    config = architecture(model, GenerationConfig(generates=("norm",)))
    found = one_and_several(config, (4, 8), names_in_templates, batch_size=128, rounds=rounds, batches=2)
    return statistics.median(ours / twin for ours, twin in zip(found["groups"], found["twin"], strict=True))


def _step_seconds(results: Results, arm: str) -> float:
    """Median over the logged steps of the real runs."""
    return statistics.median(row["step_seconds"] for run in results.runs(arm) for row in read_metrics(run.uri("train"))[1:])


def _on_a_device(ours: Bundle, plain: Bundle, *, rounds: int) -> dict[str, dict[str, Any]]:
    """Two exported classifiers for the same names: one specialized, one without a hypernetwork."""
    names = [f"thing {number}" for number in range(10)]
    with tempfile.TemporaryDirectory(prefix="hyperclip-cost-") as temporary:
        files = {}
        for side, bundle in (("specialized", ours), ("plain", plain)):
            export_package(bundle, specialize(bundle, names), Path(temporary) / side)
            files[side] = Path(temporary) / side / "model.onnx"
        sizes = {side: file.stat().st_size for side, file in files.items()}
        times = interleaved({side: passes(file, ours.preprocess.image_size) for side, file in files.items()}, rounds=rounds)
    ratio = statistics.median(one / other for one, other in zip(times["specialized"], times["plain"], strict=True))
    return {
        "onnx_bytes_specialized": measure(sizes["specialized"], unit="bytes"),
        "onnx_size_over_plain": measure(sizes["specialized"] / sizes["plain"], goal=("<=", SAME_SIZE)),
        "onnx_latency_specialized": measure(1000 * statistics.median(times["specialized"]), unit="ms"),
        "onnx_latency_over_plain": measure(ratio, goal=("<=", SAME_LATENCY)),
    }
