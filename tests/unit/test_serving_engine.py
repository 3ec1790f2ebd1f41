"""Pictures of different tasks in one forward pass, and the bounded table of encoders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from infra.errors import BadInputError
from serving.engines.hypernetwork import HypernetworkEngine
from serving.engines.image_encoder import EncodeItem, ImageEncoderEngine
from serving.engines.predictions import best_labels
from serving.engines.resident import ResidentEncoders, num_bytes
from serving.engines.text_features import TextFeatureCache
from serving.limits import ServingLimits
from serving.task_record import make_record
from tests.unit.model_helpers import KINDS, config_with
from tests.unit.serving_helpers import make_bundle, picture
from training.bundle import Bundle, load_bundle
from training.score import Scores
from training.specialize import SpecializedEncoder, specialize

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # fused and per-image norms round differently


@pytest.fixture(scope="module", params=[KINDS[0], KINDS[-1]], ids="+".join)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One that generates the norms, and one that generates everything there is."""
    return load_bundle(make_bundle(tmp_path_factory.mktemp("model") / "bundle", config=config_with(generates=request.param)))


@pytest.fixture(scope="module")
def encoders(bundle: Bundle) -> list[SpecializedEncoder]:
    return [specialize(bundle, labels) for labels in (["cat", "dog"], ["car", "bus", "tram"], [f"name {i}" for i in range(20)])]


@pytest.fixture(scope="module")
def images(bundle: Bundle) -> list[np.ndarray]:
    engine = ImageEncoderEngine(bundle)
    return [engine.decode(picture(seed), max_pixels=10_000) for seed in range(8)]


def test_the_deltas_of_these_tests_differ(encoders: Sequence[SpecializedEncoder]) -> None:
    assert (encoders[0].delta - encoders[1].delta).abs().max() > 1e-3  # or the tests below would prove nothing


def test_a_mixed_batch_equals_one_by_one(
    bundle: Bundle, encoders: Sequence[SpecializedEncoder], images: Sequence[np.ndarray]
) -> None:
    engine = ImageEncoderEngine(bundle)
    tasks = [encoders[place] for place in (0, 1, 2, 0, 2, 1, 1, 0)]
    mixed = engine.run([EncodeItem(image, task, task) for image, task in zip(images, tasks, strict=True)])
    for image, task, found in zip(images, tasks, mixed, strict=True):
        expected = task.scores(bundle, torch.from_numpy(image)[None])
        assert found.scores is not None
        assert_close(found.scores.softmax, expected.softmax[0], **TOLERANCE)
        assert_close(found.scores.match, expected.match[0], **TOLERANCE)


def test_neutral_pictures_share_the_pass(
    bundle: Bundle, encoders: Sequence[SpecializedEncoder], images: Sequence[np.ndarray]
) -> None:
    engine = ImageEncoderEngine(bundle)
    task = encoders[1]
    features_only, specialized, neutral_scores = engine.run(
        [EncodeItem(images[0], None, None), EncodeItem(images[1], task, task), EncodeItem(images[2], None, task)]
    )
    neutral = bundle.model.encode_image(torch.from_numpy(np.stack(images[:3])))
    assert features_only.scores is None
    assert_close(features_only.features, neutral[0], **TOLERANCE)
    assert_close(neutral_scores.features, neutral[2], **TOLERANCE)
    assert (specialized.features - neutral[1]).abs().max() > 1e-3
    assert neutral_scores.scores is not None and len(neutral_scores.scores.softmax) == 3


def test_a_batch_leaves_nothing_behind(
    bundle: Bundle, encoders: Sequence[SpecializedEncoder], images: Sequence[np.ndarray]
) -> None:
    engine = ImageEncoderEngine(bundle)
    before = engine.run([EncodeItem(images[0], None, None)])[0].features
    engine.run([EncodeItem(images[0], encoders[0], encoders[0]), EncodeItem(images[1], encoders[1], encoders[1])])
    assert torch.equal(engine.run([EncodeItem(images[0], None, None)])[0].features, before)


def test_resident_encoders_stay_within_their_bytes(encoders: Sequence[SpecializedEncoder]) -> None:
    first, second, third = encoders
    resident = ResidentEncoders(capacity_bytes=num_bytes(first) + num_bytes(second) + num_bytes(third) - 1)
    resident.put("first", first)
    resident.put("second", second)
    assert resident.get("first") is first  # so the second is the least recently used
    resident.put("third", third)
    assert resident.get("second") is None
    assert resident.get("first") is first and resident.get("third") is third
    assert resident.bytes_used == num_bytes(first) + num_bytes(third)
    resident.put("first", first)
    assert len(resident) == 2 and resident.bytes_used == num_bytes(first) + num_bytes(third)


def test_an_encoder_larger_than_the_table_is_not_kept(encoders: Sequence[SpecializedEncoder]) -> None:
    resident = ResidentEncoders(capacity_bytes=num_bytes(encoders[0]))
    resident.put("small", encoders[0])
    resident.put("large", encoders[2])
    assert resident.get("large") is None
    assert resident.get("small") is encoders[0]


def test_best_labels_come_first_and_keep_their_match() -> None:
    scores = Scores(softmax=torch.tensor([0.2, 0.5, 0.3]), match=torch.tensor([0.02, 0.05, 0.03]))
    best = best_labels(("a", "b", "c"), scores, 2)
    assert [(found.label, round(found.score, 3), round(found.match, 3)) for found in best] == [
        ("b", 0.5, 0.05),
        ("c", 0.3, 0.03),
    ]
    assert len(best_labels(("a", "b", "c"), scores, 1000)) == 3


def test_total_tokens_are_bounded_before_the_model_runs(bundle: Bundle) -> None:
    engine = HypernetworkEngine(
        bundle, ServingLimits(max_total_tokens=30), text_features=TextFeatureCache(capacity_bytes=10**6)
    )
    few = make_record(tenant="t", labels=["cat", "dog"], templates=["a photo of a {}"], pinned_version=None)  # 14 tokens
    assert engine.specialize(few).task.labels == ("cat", "dog")
    many = make_record(tenant="t", labels=[f"cat {i}" for i in range(9)], templates=None, pinned_version=None)  # 4 or more each
    with pytest.raises(BadInputError, match="more than the 30 tokens"):
        engine.specialize(many)


@pytest.mark.parametrize(
    ("texts", "message"), [([], "empty"), (["cat", "  "], "text 2 is empty"), (["word " * 90], "92 tokens")]
)
def test_texts_that_cannot_be_encoded_are_named(bundle: Bundle, texts: list[str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        HypernetworkEngine(bundle, ServingLimits(), text_features=TextFeatureCache(capacity_bytes=10**6)).embed_texts(texts)


def test_the_package_of_a_task_is_an_onnx_zip(bundle: Bundle, encoders: Sequence[SpecializedEncoder], tmp_path: Path) -> None:
    package = HypernetworkEngine(bundle, ServingLimits(), text_features=TextFeatureCache(capacity_bytes=10**6)).package(
        encoders[0]
    )
    assert package.startswith(b"PK") and b"model.onnx" in package
