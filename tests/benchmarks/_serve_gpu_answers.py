"""Whether a model answers on a GPU as it does on the CPU, and whether a bad one is refused there.

Shapes: B pictures, D embedding.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from data_prep.sample.pictures import read_sample
from infra.errors import CorruptArtefactError
from serving.config import ServingConfig
from serving.engines.image_encoder import EncodeItem, ImageEncoderEngine
from serving.limits import ServingLimits
from serving.model_source import load, resolve
from tests.chaos._model_versions import BAD, sign
from tests.unit.model_helpers import trained_like
from training.bundle import Bundle, golden_features, save_bundle
from training.model.registry import hyperclip_b0
from training.preprocess import PreprocessConfig
from training.specialize import specialize

NUM_NAMES = 10


@dataclass(frozen=True)
class Answers:
    """Of every picture under every task, picture by picture."""

    scores: list[dict[str, float]]
    """By label."""
    features: np.ndarray
    """(B, D)."""

    def largest_difference(self, other: "Answers") -> float:
        """Between two scores of the same label."""
        return score_difference(self.scores, other.scores)

    def feature_difference(self, other: "Answers") -> float:
        return float(np.abs(self.features - other.features).max())

    def num_other_best(self, other: "Answers") -> int:
        """Pictures with another best label."""
        best = [[max(scores, key=scores.__getitem__) for scores in one.scores] for one in (self, other)]
        return sum(one != another for one, another in zip(*best, strict=True))


def score_difference(found: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> float:
    """The largest of the same label's, NaN if there is one; a label that is missing counts with 0."""
    pairs = zip(found, expected, strict=True)
    return float(np.max([abs(one.get(label, 0.0) - score) for one, other in pairs for label, score in other.items()]))


def pictures(count: int) -> list[bytes]:
    """Of the bundled sample, spread over it."""
    found: list[bytes] = read_sample()["image"].to_pylist()
    return found[:: max(1, len(found) // count)][:count]


def label_sets(count: int) -> list[list[str]]:
    """Ten names of the bundled sample each, all different."""
    names = sorted(set(read_sample()["concept"].to_pylist()))
    random = np.random.default_rng(0)
    return [[str(name) for name in random.choice(names, NUM_NAMES, replace=False)] for _ in range(count)]


def convolutions(*, tf32: bool) -> AbstractContextManager[None]:
    """Of this process on a GPU: in TF32, as torch has them by itself, or in float32, as a replica has them."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32)


def answers(bundle: Bundle, labels: Sequence[list[str]], images: Sequence[bytes], *, batch: int) -> Answers:
    """Computed where the model is, in batches that mix the tasks; picture by picture, task by task."""
    engine = ImageEncoderEngine(bundle)
    tasks = [engine.ready(specialize(bundle, names)) for names in labels]
    items = [EncodeItem(image, task, task, NUM_NAMES) for image in decode(engine, images) for task in tasks]
    found = [one for start in range(0, len(items), batch) for one in engine.run(items[start : start + batch])]
    scores = [{one.label: one.score for one in item.predictions or ()} for item in found]
    return Answers(scores, np.stack([item.features for item in found]))


def decode(engine: ImageEncoderEngine, images: Sequence[bytes]) -> list[np.ndarray]:
    return [engine.decode(image, max_pixels=ServingLimits().max_pixels) for image in images]


def golden_difference(bundle: Bundle, folder: Path) -> float:
    """The largest between the golden features of a bundle and those computed where its model is."""
    golden = load_file(folder / "golden.safetensors")
    found = golden_features(bundle.model, bundle.preprocess.image_size)
    return max((found[name] - golden[name]).abs().max().item() for name in golden)


def bad_models(good: Path, folder: Path) -> dict[str, Path]:
    """Bundles whose files are whole and whose model is not the one whose features were saved."""
    kinds: dict[str, Callable[[Path], None]] = {"perturbed weights": _perturb}
    kinds |= {kind: BAD[kind][0] for kind in ("wrong golden features", "NaN")}
    found = {}
    for number, (kind, spoil) in enumerate(kinds.items()):
        found[kind] = folder / str(number)
        shutil.copytree(good, found[kind])
        spoil(found[kind])
    return found


def _perturb(folder: Path) -> None:
    """Every weight a little off, by a tenth of its tensor's spread."""
    path = folder / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(path)
    for name, value in tensors.items():
        if value.is_floating_point() and value.dim() >= 2:
            noise = torch.randn(value.shape, generator=generator)
            tensors[name] = (value.float() + 0.1 * value.float().std() * noise).to(value.dtype)
    save_file(tensors, path)
    sign(folder)


def reason_of_refusal(bundle: Path, *, device: str) -> str | None:
    """What a replica on that device says of the bundle; None when it would serve it."""
    try:
        load(resolve(ServingConfig(bundle_uri=str(bundle), task_store_uri=str(bundle))), device=device)
    except CorruptArtefactError as error:
        return str(error)
    return None


def save_large_model(folder: Path) -> None:
    """EfficientNet-B0 at 224 pixels with random weights, beside a small text encoder."""
    config = hyperclip_b0()
    config = replace(config, text=replace(config.text, width=64, heads=2, layers=1))
    preprocess = PreprocessConfig(image_size=config.image.image_size)
    save_bundle(folder, trained_like(config), preprocess=preprocess, templates=["{}"], model_card="Random weights.", metrics={})
