"""What a specialized encoder costs on a device, beside a plain one of the same network and beside a ViT.

Three classifiers for the same ten names, folded and exported as `hyperclip export` does it: the specialized one; the plain one,
the SigLIP twin of the same architecture under the neutral parameters; and a ViT of about as many parameters at the same image
size, with random weights: its cost is measured, its accuracy is not.  Parameters are those of the folded encoder; FLOPs are two
for a multiply-add; memory is the peak of a session of ONNX Runtime in a process of its own; latency is one picture, one thread,
all in turns, and good only as a ratio within one run.  INT8 is ONNX Runtime's static quantization, calibrated on training
pictures of the bundled sample; what it costs is counted on tasks of ten names that take every evaluation picture once.

    python -m tests.benchmarks.encoder_cost                   the shipped model
    python -m tests.benchmarks.encoder_cost --model BUNDLE
    python -m tests.benchmarks.encoder_cost --quick           few repetitions, two tasks
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.sample.pictures import SAMPLE_URI, read_sample
from infra.errors import BadInputError, HyperClipError
from tests.benchmarks._int8 import answers, quantize
from tests.benchmarks._neutral_twin import neutral_twin
from tests.benchmarks._on_device import num_flops, num_parameters, num_stored, operators, passes, peak_memory
from tests.benchmarks._vit import vit_like
from tests.result import benchmark_result, environment, interleaved, measure, spread
from training.bundle import Bundle, load_bundle
from training.evaluation.parquet_set import parquet_set
from training.evaluation.tasks import LabelSetTask, TaskFamily, draw_tasks
from training.export import MODEL_NAME, export_package
from training.fold import fold_image_encoder
from training.model.hyperclip import HyperClip
from training.model.registry import siglip_twin
from training.preprocess import preprocess
from training.shipped import shipped_model_folder
from training.specialize import ENCODER_NAME, save_specialized, specialize

NAME = "encoder_cost"
SIDES = ("specialized", "plain", "vit")
IN_INT8 = ("specialized", "vit")
NUM_NAMES = 10
NUM_CALIBRATION = 128
SAME_SIZE, SAME_LATENCY = 0.01, 1.1
"""The two files differ in what is written about them; two identical programs differ by some per cent on a busy machine."""


@dataclass(frozen=True)
class Side:
    """One classifier as a device gets it."""

    file: Path
    parameters: int
    flops: int


def vit_bundle(bundle: Bundle, *, num_parameters: int) -> Bundle:
    """A SigLIP model with random weights whose image encoder is a ViT of about so many parameters."""
    config = siglip_twin(bundle.model.config)
    torch.manual_seed(0)
    image = vit_like(bundle.model.image_encoder, num_parameters=num_parameters)
    model = HyperClip(replace(config, name="siglip_vit", image=image))
    return replace(bundle, model=model.requires_grad_(False).eval(), digest="0" * 64)


def make_side(bundle: Bundle, labels: Sequence[str], folder: Path) -> Side:
    """Specialize, fold, export."""
    encoder = specialize(bundle, labels)
    folded = fold_image_encoder(bundle.model.image_encoder, encoder.delta)
    export_package(bundle, encoder, folder)
    return Side(folder / MODEL_NAME, num_parameters(folded), num_flops(folded, bundle.preprocess.image_size))


@dataclass(frozen=True)
class Sample:
    """The bundled sample as the encoder sees it; S side of a picture."""

    calibration: np.ndarray
    """(M, 3, S, S) training pictures."""
    pictures: np.ndarray
    """(M, 3, S, S) evaluation pictures."""
    names: tuple[str, ...]
    tasks: list[LabelSetTask]

    @staticmethod
    def of(bundle: Bundle, *, num_tasks: int | None) -> "Sample":
        """Args:
        num_tasks: None for as many as deal every name, and with it every picture, at most once.
        """
        training = read_sample("train")["image"].to_pylist()
        held = parquet_set([SAMPLE_URI], only={"split": "evaluation"})
        most = len(held.objects.names) // NUM_NAMES
        family = TaskFamily(num_names=NUM_NAMES)
        return Sample(
            calibration=_inputs(training[:: len(training) // NUM_CALIBRATION][:NUM_CALIBRATION], bundle),
            pictures=_inputs([data for _, data in held.stored()], bundle),
            names=held.objects.names,
            tasks=draw_tasks(held.objects, family, num_tasks=num_tasks or most, max_pictures=len(held), seed=0),
        )

    def labels(self, task: LabelSetTask) -> list[str]:
        return [self.names[number] for number in task.classes]


def _inputs(pictures: Sequence[bytes], bundle: Bundle) -> np.ndarray:
    return np.stack([preprocess(data, bundle.preprocess) for data in pictures])


def answers_in_int8(bundle: Bundle, sample: Sample, folder: Path) -> dict[str, float]:
    """Of the tasks' pictures, the shares answered alike, and rightly in either precision; each task has its own encoder."""
    counts = {"same": 0, "right_fp32": 0, "right_int8": 0}
    num_pictures = 0
    for number, task in enumerate(sample.tasks):
        package = folder / f"task-{number}"
        export_package(bundle, specialize(bundle, sample.labels(task)), package)
        quantize(package / MODEL_NAME, package / "int8.onnx", calibration=sample.calibration)
        images, targets = sample.pictures[list(task.pictures)], np.array(task.targets)
        full, eight = answers(package / MODEL_NAME, images), answers(package / "int8.onnx", images)
        counts["same"] += int((full == eight).sum())
        counts["right_fp32"] += int((full == targets).sum())
        counts["right_int8"] += int((eight == targets).sum())
        num_pictures += len(targets)
        print(f"  INT8, task {number + 1} of {len(sample.tasks)}: {counts} of {num_pictures}", file=sys.stderr, flush=True)
    return {name: count / num_pictures for name, count in counts.items()} | {"pictures": num_pictures}


def same_as_plain(specialized: Side, plain: Side) -> dict[str, dict[str, Any]]:
    """A specialized file holds as much as a plain one: numbers, operators and bytes."""
    ours, theirs = operators(specialized.file), operators(plain.file)
    sizes = specialized.file.stat().st_size / plain.file.stat().st_size
    more = {
        "parameters_unlike_plain": abs(specialized.parameters - plain.parameters),
        "flops_unlike_plain": abs(specialized.flops - plain.flops),
        "stored_numbers_unlike_plain": abs(num_stored(specialized.file) - num_stored(plain.file)),
        "operators_unlike_plain": ((ours - theirs) + (theirs - ours)).total(),
    }
    return {
        **{name: measure(value, goal=("<=", 0)) for name, value in more.items()},
        "file_size_unlike_plain": measure(abs(sizes - 1), goal=("<=", SAME_SIZE)),
    }


def bytes_of(bundle: Bundle, labels: Sequence[str], folder: Path, *, encoder_parameters: int) -> dict[str, dict[str, Any]]:
    """What one task takes beside the encoder, and what the whole model would."""
    encoder = specialize(bundle, labels)
    save_specialized(encoder, folder, bundle)
    whole = sum(value.numel() for value in bundle.model.parameters())
    return {
        "delta": measure(4 * encoder.delta.numel(), unit="bytes"),
        "delta_with_labels_on_disk": measure((folder / ENCODER_NAME).stat().st_size, unit="bytes"),
        "hyperclip": measure(4 * whole, unit="bytes"),
        "hyperclip_over_encoder": measure(whole / encoder_parameters),
    }


def latency_ratio(times: Mapping[str, Sequence[float]], one: str, other: str) -> list[float]:
    """Round by round."""
    return [ours / theirs for ours, theirs in zip(times[one], times[other], strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=shipped_model_folder(), help="a bundle; default: the shipped model")
    parser.add_argument("--quick", action="store_true", help="few repetitions, two tasks; latency is not judged")
    arguments = parser.parse_args()
    try:
        bundle = load_bundle(arguments.model)
        if not bundle.model.num_generated:
            raise BadInputError(f"{arguments.model} is a {bundle.model.config.name}, which generates nothing")
        return run(bundle, quick=arguments.quick)
    except HyperClipError as error:
        parser.error(str(error))


def run(bundle: Bundle, *, quick: bool) -> int:
    sample = Sample.of(bundle, num_tasks=2 if quick else None)
    labels, side = sample.labels(sample.tasks[0]), bundle.preprocess.image_size
    with tempfile.TemporaryDirectory(prefix="hyperclip-encoder-") as temporary:
        folder = Path(temporary)
        specialized = make_side(bundle, labels, folder / "specialized")
        vit = vit_bundle(bundle, num_parameters=specialized.parameters)
        sides = {
            "specialized": specialized,
            "plain": make_side(neutral_twin(bundle), labels, folder / "plain"),
            "vit": make_side(vit, labels, folder / "vit"),
        }
        files = {name: one.file for name, one in sides.items()}
        for name in IN_INT8:
            files[f"{name}_int8"] = folder / f"{name}-int8.onnx"
            quantize(files[name], files[f"{name}_int8"], calibration=sample.calibration)
        memory = {name: peak_memory(file, side, processes=1 if quick else 5) for name, file in files.items()}
        times = interleaved({name: passes(file, side) for name, file in files.items()}, rounds=5 if quick else 40)
        int8 = answers_in_int8(bundle, sample, folder)
        sizes = {name: file.stat().st_size for name, file in files.items()}
        measures = same_as_plain(specialized, sides["plain"])
        measures |= bytes_of(bundle, labels, folder / "task", encoder_parameters=specialized.parameters)
    to_plain = latency_ratio(times, "specialized", "plain")
    measures |= {
        **{
            f"vit_{what}_over_specialized": measure(getattr(sides["vit"], what) / getattr(specialized, what))
            for what in ("parameters", "flops")
        },
        **{
            f"{one}_latency_over_{other}": measure(statistics.median(latency_ratio(times, one, other)))
            for one, other in (("vit", "specialized"), ("specialized_int8", "specialized"), ("vit_int8", "vit"))
        },
        **{f"{name}_int8_size_over_fp32": measure(sizes[f"{name}_int8"] / sizes[name]) for name in IN_INT8},
        "int8_same_answers": measure(int8["same"]),
        "accuracy_fp32": measure(int8["right_fp32"]),
        "accuracy_int8": measure(int8["right_int8"]),
    }
    found = {
        name: {
            "bytes": sizes[name],
            "peak_memory_bytes": memory[name],
            "latency_ms": spread([1000 * one for one in times[name]]),
        }
        for name in files
    }
    for name, one in sides.items():
        found[name] = {"parameters": one.parameters, "flops": one.flops, **found[name]}
    print("\n".join(table(found)), flush=True)
    return benchmark_result(
        NAME,
        ratio=statistics.median(to_plain),
        goal=None if quick else ("<=", SAME_LATENCY),
        measures=measures,
        sides=found,
        spread={"latency_over_plain": spread(to_plain)},
        sizes={
            "names": NUM_NAMES,
            "tasks": len(sample.tasks),
            "pictures": int8["pictures"],
            "calibration": NUM_CALIBRATION,
            "image_size": side,
        },
        model={"name": bundle.model.config.name, "digest": bundle.digest, "vit": vit.model.config.image.trunk},
        note="flops are two for a multiply-add; the ViT has random weights: its accuracy was not measured",
        **environment("torch", "timm", "onnx", "onnxruntime"),
    )


def table(sides: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines for people."""
    lines = [f"{'':<18}{'parameters':>12}{'FLOPs':>14}{'file, bytes':>13}{'memory, bytes':>15}{'latency, ms (range)':>30}"]
    for name, one in sides.items():
        counts = [f"{one[what]:,}" if what in one else "" for what in ("parameters", "flops")]
        took = one["latency_ms"]
        latency = f"{took['median']:.3g} ({took['min']:.3g} to {took['max']:.3g})"
        lines.append(f"{name:<18}{counts[0]:>12}{counts[1]:>14}{one['bytes']:>13,}{one['peak_memory_bytes']:>15,}{latency:>30}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
