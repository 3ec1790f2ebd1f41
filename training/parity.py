"""Parity: the proof that an exported classifier computes what the model computes.

Three paths get the same inputs: `functional` (the neutral encoder with the delta applied, as evaluation and serving run it),
`folded` (the torch module that was exported) and `onnx` (the file, run by ONNX Runtime).
Shapes: N inputs, C labels, D embedding, S side of the input.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.config import StrictModel
from infra.errors import ParityError

BOUND = 1e-4
"""Largest absolute difference allowed in scores, match and features; processors and kernels differ by about 1e-6."""
NUM_RANDOM_INPUTS = 16
BATCH_SIZES = (1, 5)
"""The first two batches; the rest comes in a third, so that three sizes go through one file."""


class Outputs(NamedTuple):
    """What one path says about N inputs."""

    scores: np.ndarray
    """(N, C) softmax."""
    match: np.ndarray
    """(N, C) sigmoid."""
    image_features: np.ndarray
    """(N, D) unit vectors."""


Path = Callable[[Tensor], Outputs]
"""(N, 3, S, S) float32 -> outputs."""


class Differences(StrictModel):
    """Largest absolute differences between two paths."""

    scores: float
    match: float
    image_features: float


class ParityCertificate(StrictModel):
    """`certificate.json`."""

    schema_version: Literal[1] = 1
    model_sha256: str
    """Of the `model.onnx` that was measured."""
    bundle_digest: str
    """The model it was made from."""
    num_labels: int
    num_random_inputs: int
    num_pictures: int
    batch_sizes: tuple[int, ...]
    bound: float
    max_abs_difference: dict[str, Differences]
    """By pair of paths, `onnx_vs_functional` and so on."""
    top1_agreement: float
    """Share of the inputs for which the file and the functional path name the same label."""
    top1_ties: int
    """Inputs for which they differ, the two labels' cosines lying within the bound of each other."""
    versions: dict[str, str]


def random_inputs(size: int) -> Tensor:
    """(NUM_RANDOM_INPUTS, 3, size, size): half white noise, half smooth blobs, which reach other activations."""
    generator = torch.Generator().manual_seed(0)
    half = NUM_RANDOM_INPUTS // 2
    noise = torch.randn(half, 3, size, size, generator=generator)
    coarse = torch.randn(NUM_RANDOM_INPUTS - half, 3, 4, 4, generator=generator)
    return torch.cat([noise, F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)])


def batches(images: Tensor) -> Sequence[Tensor]:
    """The inputs in batches of different sizes."""
    return [batch for batch in torch.tensor_split(images, np.cumsum(BATCH_SIZES).tolist()) if len(batch)]


def run_in_batches(path: Path, images: Tensor) -> Outputs:
    parts = [path(batch) for batch in batches(images)]
    return Outputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def compare(first: Outputs, second: Outputs) -> Differences:
    return Differences(
        **{name: float(np.abs(getattr(first, name) - getattr(second, name)).max()) for name in Differences.model_fields}
    )


def certify(
    images: Tensor,
    *,
    functional: Path,
    folded: Path,
    onnx: Path,
    text_features: Tensor,
    num_pictures: int,
    model_sha256: str,
    bundle_digest: str,
    versions: dict[str, str],
) -> ParityCertificate:
    """Run the three paths and compare them.

    Args:
        images: (N, 3, S, S), the last `num_pictures` of them real pictures.
        text_features: (C, D), to judge ties.

    Raises:
        ParityError: a difference is over the bound (or not a number), or another label comes first; it has the numbers.
    """
    outputs = {
        "onnx": run_in_batches(onnx, images),
        "folded": run_in_batches(folded, images),
        "functional": run_in_batches(functional, images),
    }
    differences = {f"{a}_vs_{b}": compare(outputs[a], outputs[b]) for a, b in combinations(outputs, 2)}
    agree, ties = _top1(outputs["onnx"], outputs["functional"], text_features.numpy())
    worst = [value for difference in differences.values() for value in difference.model_dump().values()]
    if not all(value <= BOUND for value in worst) or agree + ties < len(images):
        measured = "; ".join(
            f"{pair}: " + ", ".join(f"{name} {value:.2g}" for name, value in difference.model_dump().items())
            for pair, difference in differences.items()
        )
        raise ParityError(
            f"the exported model is not the model: largest absolute differences {measured} (bound {BOUND:g}); "
            f"same first label for {agree} of {len(images)} inputs, {ties} ties. Nothing was written"
        )
    return ParityCertificate(
        model_sha256=model_sha256,
        bundle_digest=bundle_digest,
        num_labels=len(text_features),
        num_random_inputs=len(images) - num_pictures,
        num_pictures=num_pictures,
        batch_sizes=tuple(len(batch) for batch in batches(images)),
        bound=BOUND,
        max_abs_difference=differences,
        top1_agreement=agree / len(images),
        top1_ties=ties,
        versions=versions,
    )


def _top1(found: Outputs, expected: Outputs, text_features: np.ndarray) -> tuple[int, int]:
    """(same first label, other label within the bound).

    Cosines are compared: with thousands of labels the softmax scores themselves are smaller than the bound.
    """
    cosine = expected.image_features @ text_features.T
    rows = np.arange(len(cosine))
    choice, best = found.scores.argmax(axis=1), expected.scores.argmax(axis=1)
    same = choice == best
    tied = ~same & (cosine[rows, best] - cosine[rows, choice] <= BOUND)
    return int(same.sum()), int(tied.sum())
