"""From names to an encoder: what the names may be, what their order may change, what is stored."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.testing import assert_close

from infra.errors import BadInputError, CorruptArtefactError
from tests.unit.model_helpers import KINDS, LABELS, config_with, make_bundle, random_images
from training.bundle import Bundle
from training.model.parameter_delta import GroupDelta
from training.model.registry import hyperclip_test, siglip_twin
from training.specialize import encode_texts, load_specialized, save_specialized, specialize


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def test_scores_are_those_of_the_model_under_the_generated_delta(bundle: Bundle) -> None:
    encoder = specialize(bundle, LABELS, ["a photo of a {}"])
    images = random_images(3)
    texts = bundle.model.encode_text(bundle.tokenizer([f"a photo of a {label}" for label in LABELS]))
    delta = bundle.model.generate(texts[None])
    features = bundle.model.encode_image(images, GroupDelta(delta))
    logits = bundle.model.logit_scale * features @ texts.T
    found = encoder.scores(bundle, images)
    assert_close(encoder.delta, delta[0], atol=1e-6, rtol=0)
    assert_close(found.softmax, logits.softmax(dim=1), atol=1e-5, rtol=0)
    assert_close(found.match, (logits + bundle.model.logit_bias).sigmoid(), atol=1e-5, rtol=0)


def test_the_order_of_the_labels_only_orders_the_scores(bundle: Bundle) -> None:
    order = [2, 0, 3, 1]
    first, second = specialize(bundle, LABELS), specialize(bundle, [LABELS[i] for i in order])
    assert second.task.labels == tuple(LABELS[i] for i in order)
    images = random_images(5)
    for ours, theirs in zip(first.scores(bundle, images), second.scores(bundle, images), strict=True):
        assert_close(theirs, ours[:, order], atol=1e-5, rtol=0)  # sums in another order


def test_other_labels_change_the_features(bundle: Bundle) -> None:
    first, second = specialize(bundle, LABELS), specialize(bundle, ["tree", "house"])
    assert (first.delta - second.delta).abs().max() > 1e-3


def test_a_twin_specializes_to_its_neutral_encoder(tmp_path: Path) -> None:
    twin = make_bundle(tmp_path / "twin", siglip_twin(hyperclip_test()))
    assert torch.count_nonzero(specialize(twin, LABELS).delta) == 0


def test_a_label_feature_is_the_mean_over_its_templates(bundle: Bundle) -> None:
    encoder = specialize(bundle, ["cat"], ["{}", "a drawing of a {}", "many {}"])
    features = encode_texts(bundle, ["cat", "a drawing of a cat", "many cat"])
    assert_close(encoder.text_features[0], F.normalize(features.mean(dim=0), dim=0))
    assert specialize(bundle, ["cat"]).task.templates == bundle.templates


def test_a_label_is_put_into_the_template_as_it_is(bundle: Bundle) -> None:
    encoder = specialize(bundle, ["{} {0} %s"], ["a {}"])
    assert_close(encoder.text_features, encode_texts(bundle, ["a {} {0} %s"]))


def test_labels_are_made_canonical(bundle: Bundle) -> None:
    assert specialize(bundle, ["  Cafe\u0301 ", "dog"]).task.labels == ("Caf\u00e9", "dog")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "the list of labels is empty"),
        ("cat", "the list of labels is empty"),
        (["cat", " "], "label 2 is empty"),
        (["cat", "dog", " cat"], "label 'cat' is there twice, at 1 and 3"),
        (["Caf\u00e9", "Cafe\u0301"], "is there twice"),
        (["x" * 301], "label 1 has 301 characters; at most 300"),
        (["a b " * 70], "tokens; the text encoder reads 77"),
        ([f"label {i}" for i in range(10_001)], "10,001 labels; at most 10,000"),
    ],
)
def test_bad_labels_are_refused(bundle: Bundle, labels: list[str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        specialize(bundle, labels)


@pytest.mark.parametrize("templates", [[], "{}", ["a photo"], ["{} and {}"], ["{}" + "x" * 300], ["{}"] * 101])
def test_bad_templates_are_refused(bundle: Bundle, templates: list[str]) -> None:
    with pytest.raises(BadInputError, match="template"):
        specialize(bundle, ["cat"], templates)


def test_a_stored_encoder_comes_back_bit_equal(bundle: Bundle, tmp_path: Path) -> None:
    encoder = specialize(bundle, LABELS)
    save_specialized(encoder, tmp_path, bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.safetensors", "task.json"]
    loaded = load_specialized(tmp_path, bundle)
    assert loaded.task == encoder.task
    for name in ("delta", "text_features", "logit_scale", "logit_bias"):
        assert torch.equal(getattr(loaded, name), getattr(encoder, name))


def test_an_encoder_of_another_model_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", config_with(image_size=48))
    save_specialized(specialize(bundle, LABELS), tmp_path / "encoder", bundle)
    with pytest.raises(BadInputError, match=f"made by model {bundle.digest[:12]}, not by {other.digest[:12]}"):
        load_specialized(tmp_path / "encoder", other)


def test_an_unfinished_newer_or_damaged_encoder_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    save_specialized(specialize(bundle, LABELS), tmp_path, bundle)
    task = tmp_path / "task.json"
    text = task.read_text()
    task.write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(BadInputError, match="schema_version 2"):
        load_specialized(tmp_path, bundle)
    task.unlink()
    with pytest.raises(BadInputError, match=r"holds no task\.json"):
        load_specialized(tmp_path, bundle)
    task.write_text(text)
    path = tmp_path / "encoder.safetensors"
    data = path.read_bytes()
    one_bit = bytearray(data)
    one_bit[-1] ^= 1
    swapped = tmp_path / "swapped"
    save_specialized(specialize(bundle, LABELS[:2]), swapped, bundle)  # whole, and of another task
    for damaged in (bytes(one_bit), data[:-1], b"", (swapped / "encoder.safetensors").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(CorruptArtefactError, match=r"missing or damaged: its sha256 is .*specialize again"):
            load_specialized(tmp_path, bundle)
    path.unlink()
    with pytest.raises(CorruptArtefactError, match=r"encoder\.safetensors is missing or damaged"):
        load_specialized(tmp_path, bundle)


def test_every_kind_of_delta_is_stored_by_name(tmp_path: Path) -> None:
    config = config_with(generates=KINDS[-1], basis=8, zero_mean=True)
    bundle = make_bundle(tmp_path / "bundle", config)
    encoder = specialize(bundle, LABELS)
    save_specialized(encoder, tmp_path / "encoder", bundle)
    assert torch.equal(load_specialized(tmp_path / "encoder", bundle).delta, encoder.delta)
    names = {name.removeprefix("delta.") for name in load_file(tmp_path / "encoder" / "encoder.safetensors")}
    assert {"bn1.weight", "conv_head.write", "projection.write"} <= names


def test_an_encoder_overwrites_nothing(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInputError, match="not an empty folder"):
        save_specialized(specialize(bundle, LABELS), tmp_path, bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


_MEMORY = """
import resource, sys, tempfile
from pathlib import Path
import torch
from tests.unit.model_helpers import make_bundle
from training.specialize import specialize

torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    bundle = make_bundle(Path(folder) / "bundle")
specialize(bundle, ["cat"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
encoder = specialize(bundle, [f"label {i}" for i in range(10_000)], ["{}"])
assert torch.isfinite(encoder.delta).all() and len(encoder.text_features) == 10_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_ten_thousand_labels_fit_in_a_gibibyte() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) // (1024 if sys.platform == "darwin" else 1) < 1 << 20  # KiB
