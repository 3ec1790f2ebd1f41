"""Registered model versions for fault injection: good ones that differ, and bad ones of every kind, in a real MLflow."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from infra.config import content_hash
from infra.model_registry import ModelRegistry
from infra.storage import sha256
from infra.tracking import Tracker
from tests.evaluation_results import family_result, zero_shot_result
from tests.unit.serving_helpers import make_bundle
from training.bundle import BUNDLE_NAME, Bundle, load_bundle
from training.model.registry import hyperclip_test
from training.publish import publish

NAME = "updated"


@dataclass(frozen=True)
class Published:
    """A version, and what it should answer with."""

    version: str
    bundle: Bundle


def publish_good(tracker: Tracker, folder: Path, *, seed: int) -> Published:
    """Publish a model as a run does; every third has another size of embedding."""
    config = hyperclip_test()
    if seed % 3 == 2:
        wider = config.image.embed_dim * 2
        config = replace(config, image=replace(config.image, embed_dim=wider), text=replace(config.text, embed_dim=wider))
    make_bundle(folder, seed=seed, config=config)
    bundle = load_bundle(folder)
    result = zero_shot_result((family_result({"specialized": 0.5, "neutral": 0.3, "swapped": 0.2}),), digest=bundle.digest)
    version, _ = publish(tracker, run_id=tracker.start_run("good"), bundle_folder=folder, name=NAME, result=result)
    return Published(version.version, bundle)


def publish_bad(tracker: Tracker, folder: Path, kind: str, *, seed: int) -> str:
    """Register a version that must never serve, as it would come from a broken disk or a broken program."""
    make_bundle(folder, seed=seed)
    BAD[kind][0](folder)
    run_id = tracker.start_run(f"bad: {kind}")
    tracker.client.log_artifacts(run_id, str(folder), "bundle")
    source = f"{tracker.client.get_run(run_id).info.artifact_uri}/bundle"
    version = tracker.client.create_model_version(NAME, source, run_id=run_id)
    return str(ModelRegistry(tracker).version(NAME, str(version.version)).version)


def _missing_file(folder: Path) -> None:
    (folder / "golden.safetensors").unlink()


def _no_bundle(folder: Path) -> None:
    (folder / BUNDLE_NAME).unlink()


def _damaged_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def _wrong_golden(folder: Path) -> None:
    golden = load_file(folder / "golden.safetensors")
    save_file({name: value.roll(1, 0) + 0.1 for name, value in golden.items()}, folder / "golden.safetensors")
    sign(folder)


def _nan(folder: Path) -> None:
    """In the weights and, as the program that wrote them would have it, in the golden features."""
    for name in ("model.safetensors", "golden.safetensors"):
        tensors = load_file(folder / name)
        save_file(
            {key: torch.full_like(value, torch.nan) if value.is_floating_point() else value for key, value in tensors.items()},
            folder / name,
        )
    sign(folder)


def _other_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["image"]["trunk"] = "transformer_of_tomorrow"
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder)


def _strange_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"] = {"name": "strange", "layers": [1, 2, 3]}
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder)


def _newer_schema(folder: Path) -> None:
    manifest = json.loads((folder / BUNDLE_NAME).read_text())
    (folder / BUNDLE_NAME).write_text(json.dumps(manifest | {"schema_version": 99}))


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing file": (_missing_file, "golden.safetensors missing"),
    "damaged weights": (_damaged_weights, "model.safetensors missing or changed"),
    "wrong golden features": (_wrong_golden, "does not reproduce its golden"),
    "NaN": (_nan, "off by nan"),
    "unknown architecture": (_other_architecture, "no network 'transformer_of_tomorrow'"),
    "strange configuration": (_strange_config, "not a model configuration"),
    "no bundle": (_no_bundle, "0 files named bundle.json"),
    "newer schema": (_newer_schema, "schema_version 99"),
}
"""What is done to a good bundle, and what must be said of it."""


def sign(folder: Path) -> None:
    """Make the list of files fit what is there, so that only loading can find out."""
    files = {path.name: sha256(str(path)) for path in sorted(folder.iterdir()) if path.name != BUNDLE_NAME}
    (folder / BUNDLE_NAME).write_text(json.dumps({"schema_version": 1, "files": files, "digest": content_hash(files)}))
