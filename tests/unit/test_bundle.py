"""A bundle is the model that was saved, or it is refused by the name of what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.config import content_hash
from infra.errors import BadInputError, CorruptArtefactError
from infra.storage import sha256
from tests.unit.model_helpers import make_bundle, random_images, trained_like
from training.bundle import full_float32_convolutions, load_bundle, save_bundle
from training.model.hyperclip import HyperClip
from training.model.parameter_delta import GroupDelta
from training.model.registry import hyperclip_test, model_config, siglip_twin
from training.preprocess import PreprocessConfig
from training.tokenizer import Tokenizer

FILES = ["README.md", "config.json", "golden.safetensors", "model.safetensors", "preprocess.json", "tokenizer.json"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    make_bundle(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def reseal(folder: Path) -> None:
    """Make the manifest fit the changed files, as a forger or a buggy writer would."""
    manifest = json.loads((folder / "bundle.json").read_text())
    files = {name: sha256(str(folder / name)) for name in manifest["files"]}
    (folder / "bundle.json").write_text(json.dumps({**manifest, "files": files, "digest": content_hash(files)}))


def test_a_loaded_bundle_is_the_saved_model(saved: Path) -> None:
    bundle, model = load_bundle(saved), trained_like(hyperclip_test())
    images, tokens = random_images(4), Tokenizer()(["a cat", "a dog"])
    delta = model.generate(model.encode_text(tokens)[None])
    stored = bundle.model.state_dict()
    assert all(torch.equal(stored[name], value) for name, value in model.state_dict().items())
    assert torch.equal(bundle.model.generate(bundle.model.encode_text(tokens)[None]), delta)
    assert torch.equal(bundle.model.encode_image(images, GroupDelta(delta)), model.encode_image(images, GroupDelta(delta)))
    assert bundle.model.config == model.config
    assert not bundle.model.training and not any(p.requires_grad for p in bundle.model.parameters())
    assert bundle.templates == ("{}", "a photo of a {}")
    assert bundle.metrics == {"accuracy": 0.5}
    assert bundle.preprocess == PreprocessConfig(image_size=32)


def test_training_a_loaded_model_further_leaves_its_file_alone(saved: Path) -> None:
    with torch.no_grad():
        for parameter in load_bundle(saved).model.parameters():
            parameter.zero_()
    load_bundle(saved)  # which checks every file


def test_the_same_model_has_the_same_digest(saved: Path, tmp_path: Path) -> None:
    assert make_bundle(tmp_path / "again").digest == load_bundle(saved).digest


def test_a_twin_can_be_bundled(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "twin", siglip_twin(hyperclip_test()))
    assert bundle.model.hypernetwork is None


def test_a_trunk_of_other_sizes_comes_back(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", model_config("hyperclip_nano"))
    assert bundle.model.config == model_config("hyperclip_nano")
    assert json.loads((tmp_path / "bundle" / "config.json").read_text())["model"]["image"]["trunk_options"] == {
        "channels": [4, 8, 12, 24]
    }


@pytest.mark.parametrize("options", [{"pretrained": True}, {"checkpoint_path": "/tmp/x"}, {"channels": ["/tmp/x"]}], ids=str)
def test_a_bundle_can_pass_nothing_but_sizes_to_timm(copied: Path, options: dict[str, object]) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["model"]["image"]["trunk_options"] = options
    (copied / "config.json").write_text(json.dumps(config))
    reseal(copied)
    with pytest.raises(CorruptArtefactError, match=f"trunk_options=.*{next(iter(options))}"):
        load_bundle(copied)


def test_saving_leaves_a_model_in_training(tmp_path: Path) -> None:
    model = HyperClip(hyperclip_test()).train()
    save_bundle(tmp_path / "b", model, preprocess=PreprocessConfig(image_size=32), templates=["{}"], model_card="", metrics={})
    assert model.training and model.image_encoder.trunk.training


def test_nothing_in_it_is_a_pickle(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted([*FILES, "bundle.json"])
    for path in saved.iterdir():
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.name == "README.md"


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_named(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(CorruptArtefactError, match=f"{name} missing or changed"):
        load_bundle(copied)
    (copied / name).unlink()
    with pytest.raises(CorruptArtefactError, match=f"{name} missing or changed"):
        load_bundle(copied)


def test_a_manifest_that_lists_other_files_is_refused(copied: Path) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    del manifest["files"]["model.safetensors"]
    (copied / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtefactError, match=r"bundle\.json is damaged"):
        load_bundle(copied)
    manifest["digest"] = content_hash(manifest["files"])
    (copied / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtefactError, match=r"bundle\.json is damaged"):
        load_bundle(copied)
    (copied / "bundle.json").write_text("{")
    with pytest.raises(CorruptArtefactError, match=r"bundle\.json"):
        load_bundle(copied)


def test_an_unfinished_folder_is_no_bundle(copied: Path, tmp_path: Path) -> None:
    (copied / "bundle.json").unlink()
    for folder in (copied, tmp_path / "absent"):
        with pytest.raises(BadInputError, match=r"holds no bundle\.json"):
            load_bundle(folder)


def test_a_newer_version_is_refused(copied: Path) -> None:
    manifest = json.loads((copied / "bundle.json").read_text())
    (copied / "bundle.json").write_text(json.dumps({**manifest, "schema_version": 2, "signature": "?"}))
    with pytest.raises(BadInputError, match="schema_version 2; this version of hyperclip reads up to 1"):
        load_bundle(copied)


def test_features_that_are_not_reproduced_are_refused(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    save_file({name: value * 1.5 if "projection" in name else value + 0.1 for name, value in tensors.items()},
              copied / "model.safetensors")  # fmt: skip
    reseal(copied)
    with pytest.raises(CorruptArtefactError, match="does not reproduce its golden"):
        load_bundle(copied)


def test_weights_that_do_not_fit_the_configuration_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["model"]["text"]["layers"] = 2
    (copied / "config.json").write_text(json.dumps(config))
    reseal(copied)
    with pytest.raises(CorruptArtefactError, match=r"model\.safetensors does not fit its config\.json"):
        load_bundle(copied)


def test_another_vocabulary_is_noticed(copied: Path) -> None:
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    tokenizer["golden"]["a photo of a cat"][1] += 1
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    reseal(copied)
    with pytest.raises(CorruptArtefactError, match="the tokenizer gives"):
        load_bundle(copied)


def test_a_folder_in_use_is_not_written_to(saved: Path) -> None:
    with pytest.raises(BadInputError, match="is not empty"):
        make_bundle(saved)


def test_golden_features_are_float32_whatever_else_may_be_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with full_float32_convolutions():
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32
