"""A model bundle: everything needed to use a trained model, in one folder, offline, without pickle.

config.json        architecture and label templates
model.safetensors  parameters and buffers, as float32 or, in a bundle that is to be small, mostly as float16
tokenizer.json     which tokenizer, with token ids it must reproduce
preprocess.json    from picture bytes to network input
golden.safetensors features the loaded model must reproduce
README.md          model card
bundle.json        written last: SHA-256 of every file, and their common digest, the identity of the model

Beside them may lie none_of_these.json, a calibration that names its model by the digest (training/none_of_these.py).
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from infra import artefacts, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError, CorruptArtefactError
from training.half_precision import half_precision, rounded
from training.model.hyperclip import HyperClip, HyperClipConfig
from training.model.parameter_delta import GroupDelta
from training.none_of_these import NoneOfThese, read_none_of_these
from training.preprocess import PreprocessConfig
from training.tokenizer import CONTEXT_LENGTH, GOLDEN_TOKENS, Tokenizer

BUNDLE_NAME = "bundle.json"
SCHEMA_VERSION = 1
Precision = Literal["float32", "float16"]
_FILES = {"config.json", "model.safetensors", "tokenizer.json", "preprocess.json", "golden.safetensors"}
GOLDEN_TOLERANCE = 1e-3
"""Features are unit vectors; processors and kernels differ by about 1e-5, a wrong file by about 1."""


class BundleConfig(StrictModel):
    """`config.json`."""

    schema_version: Literal[1] = 1
    model: dict[str, Any]
    """`HyperClipConfig.to_dict()`."""
    templates: tuple[str, ...] = ("{}",)
    """How the model was taught to read a name; a label's feature is the renormalized mean over them."""
    metrics: dict[str, float] = Field(default_factory=dict)


class TokenizerConfig(StrictModel):
    """`tokenizer.json`."""

    schema_version: Literal[1] = 1
    kind: Literal["clip_bpe"] = "clip_bpe"
    context_length: int = CONTEXT_LENGTH
    golden: dict[str, list[int]]


class BundleManifest(StrictModel):
    """`bundle.json`."""

    schema_version: Literal[1] = 1
    files: dict[str, str]
    digest: str


@dataclass(frozen=True)
class Bundle:
    """A loaded model, ready to use: eval mode, no gradients."""

    model: HyperClip
    tokenizer: Tokenizer
    preprocess: PreprocessConfig
    templates: tuple[str, ...]
    metrics: dict[str, float]
    digest: str
    """Identity of the model: the same files have the same digest."""
    none_of_these: NoneOfThese | None = None
    """Calibration that was found beside it."""


def save_bundle(
    folder: Path,
    model: HyperClip,
    *,
    preprocess: PreprocessConfig,
    templates: Sequence[str],
    model_card: str,
    metrics: Mapping[str, float],
    precision: Precision = "float32",
) -> BundleManifest:
    """Write a bundle; `bundle.json` comes last, so a folder without it is no bundle.

    Args:
        folder: new or empty.
        precision: of the stored weights, see `half_precision.py`; with float16 the golden features are those of the rounded
            model.  Reading makes float32 of either.

    Raises:
        BadInputError: the folder is in use, or the weights do not fit the precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BadInputError(f"{folder} is not empty; a bundle gets a folder of its own")
    config = BundleConfig(model=model.config.to_dict(), templates=tuple(templates), metrics=dict(metrics))
    texts: dict[str, str] = {
        "config.json": config.model_dump_json(indent=1),
        "tokenizer.json": TokenizerConfig(golden=GOLDEN_TOKENS).model_dump_json(indent=1),
        "preprocess.json": preprocess.model_dump_json(indent=1),
        "README.md": model_card,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    state = model.state_dict() if precision == "float32" else half_precision(model.state_dict())
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    was_training = model.training
    stored = model if precision == "float32" else rounded(model)
    save_file(golden_features(stored.eval(), preprocess.image_size), folder / "golden.safetensors")
    model.train(was_training)  # a bundle may be saved in the middle of training
    for path in folder.glob("*.safetensors"):  # which safetensors writes for its owner alone
        shutil.copymode(folder / "config.json", path)
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    manifest = BundleManifest(files=files, digest=content_hash(files))
    storage.write_atomic(str(folder / BUNDLE_NAME), manifest.model_dump_json(indent=1))
    return manifest


def load_bundle(folder: Path, *, device: str = "cpu") -> Bundle:
    """Load a bundle and prove that it is the model that was saved, on the device that it is going to compute on.

    Raises:
        BadInputError: no bundle there, or a newer version of this project wrote it.
        CorruptArtefactError: a file is missing or changed, or the golden features are not reproduced.
    """
    manifest = check_bundle_files(folder)
    config = artefacts.read_model(str(folder / "config.json"), BundleConfig)
    tokenizer = Tokenizer()
    for text, expected in artefacts.read_model(str(folder / "tokenizer.json"), TokenizerConfig).golden.items():
        if (found := tokenizer([text])[0].tolist()) != expected:
            raise CorruptArtefactError(f"the tokenizer gives {found} for {text!r}, the model was trained with {expected}")
    preprocess = artefacts.read_model(str(folder / "preprocess.json"), PreprocessConfig)
    try:
        model = _loaded(HyperClipConfig.from_dict(config.model), folder / "model.safetensors")
    except (RuntimeError, ValueError) as error:
        raise CorruptArtefactError(f"{folder / 'model.safetensors'} does not fit its config.json: {error}") from error
    model.requires_grad_(False).eval().to(device)
    golden = load_file(folder / "golden.safetensors")
    for name, found_features in golden_features(model, preprocess.image_size).items():
        difference = (found_features - golden[name]).abs().max().item()
        if not difference <= GOLDEN_TOLERANCE:
            raise CorruptArtefactError(f"bundle {folder} does not reproduce its golden {name}: off by {difference:.2g}")
    return Bundle(
        model=model,
        tokenizer=tokenizer,
        preprocess=preprocess,
        templates=config.templates,
        metrics=config.metrics,
        digest=manifest.digest,
        none_of_these=read_none_of_these(folder, bundle_digest=manifest.digest),
    )


def check_bundle_files(folder: Path) -> BundleManifest:
    """Compare every file with the list in `bundle.json`, without loading anything.

    Raises:
        BadInputError: no bundle there, or a newer version of this project wrote it.
        CorruptArtefactError: a file is missing or changed.
    """
    manifest = read_bundle_manifest(folder)
    if content_hash(manifest.files) != manifest.digest or not manifest.files.keys() >= _FILES:
        raise CorruptArtefactError(f"{folder / BUNDLE_NAME} is damaged: its list of files does not have the digest it names")
    changed = [
        name for name, digest in manifest.files.items() if not (folder / name).is_file() or _sha256(folder / name) != digest
    ]
    if changed:
        raise CorruptArtefactError(f"bundle {folder} is damaged: {', '.join(changed)} missing or changed")
    return manifest


class _NoInitialization(TorchFunctionMode):
    """Leaves new parameters as memory gives them: torch's own way of skipping what is overwritten at once."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return function(*args, **(kwargs or {}))


def _loaded(config: HyperClipConfig, path: Path) -> HyperClip:
    """The model with its weights, copied once, to where torch aligns them.

    Used where the mapped file has them, they would lie otherwise: sums are then rounded in another order, and a loaded model
    would differ from the one in memory in the last bit.
    """
    with _NoInitialization():
        model = HyperClip(config)
    model.load_state_dict(load_file(path))
    return model


def read_bundle_manifest(folder: Path) -> BundleManifest:
    """Raises BadInputError when the folder holds no finished bundle of a version we read."""
    uri = str(folder / BUNDLE_NAME)
    if not storage.exists(uri):
        raise BadInputError(f"{folder} holds no {BUNDLE_NAME}: not a model bundle, or one that was not finished")
    artefacts.check_schema_version(uri, newest=SCHEMA_VERSION)
    return artefacts.read_model(uri, BundleManifest)


@torch.no_grad()
def golden_features(model: HyperClip, image_size: int) -> dict[str, Tensor]:
    """Features of fixed inputs through every part of the model, in full float32 whatever is allowed elsewhere.

    Returns:
        {what: (inputs, D)} on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    device = model.log_scale.device
    images = torch.randn(2, 3, image_size, image_size, generator=generator).to(device)
    with full_float32_convolutions():
        text_features = model.encode_text(Tokenizer()(list(GOLDEN_TOKENS)).to(device))
        delta = GroupDelta(model.generate(text_features[None]))
        features = {
            "text_features": text_features,
            "neutral_image_features": model.encode_image(images),
            "specialized_image_features": model.encode_image(images, delta),
        }
    return {name: value.cpu() for name, value in features.items()}


def full_float32_convolutions() -> AbstractContextManager[None]:
    """Without TF32, which torch allows in convolutions on GPUs and which keeps 10 bits of a factor; of the whole process."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
