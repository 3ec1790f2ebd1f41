"""Pictures of different tasks in one forward pass, and the bounded table of encoders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from infra.errors import BadInputError
from serving.engines.hypernetwork import HypernetworkEngine
from serving.engines.image_encoder import EncodeItem, ImageEncoderEngine, ReadyTask, padded_size
from serving.engines.predictions import best_labels
from serving.engines.resident import ResidentEncoders
from serving.engines.text_features import TextFeatureCache
from serving.limits import ServingLimits
from serving.metrics import EncoderMetrics
from serving.task_record import make_record
from tests.unit.model_helpers import KINDS, config_with
from tests.unit.serving_helpers import Told, make_bundle, picture
from training.bundle import Bundle, load_bundle
from training.preprocess import preprocess
from training.score import class_scores
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


def test_a_decoded_batch_is_normalized_as_everywhere(bundle: Bundle) -> None:
    engine = ImageEncoderEngine(bundle)
    data = [picture(seed, kind=kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    found = engine.normalized([engine.decode(one, max_pixels=10_000) for one in data])
    assert torch.equal(found, torch.from_numpy(np.stack([preprocess(one, bundle.preprocess) for one in data])))


def test_a_mixed_batch_equals_one_by_one(
    bundle: Bundle, encoders: Sequence[SpecializedEncoder], images: Sequence[np.ndarray]
) -> None:
    engine = ImageEncoderEngine(bundle)
    tasks = [encoders[place] for place in (0, 1, 2, 0, 2, 1, 1, 0)]
    ready = {id(task): engine.ready(task) for task in encoders}
    mixed = engine.run(
        [EncodeItem(image, ready[id(task)], ready[id(task)], 100) for image, task in zip(images, tasks, strict=True)]
    )
    for image, task, found in zip(images, tasks, mixed, strict=True):
        expected = task.scores(bundle, engine.normalized([image]))
        assert found.predictions is not None
        by_label = {one.label: (one.score, one.match) for one in found.predictions}
        scores, matches = torch.tensor([by_label[label] for label in task.task.labels]).T
        assert_close(scores, expected.softmax[0], **TOLERANCE)
        assert_close(matches, expected.match[0], **TOLERANCE)


def test_neutral_pictures_share_the_pass(
    bundle: Bundle, encoders: Sequence[SpecializedEncoder], images: Sequence[np.ndarray]
) -> None:
    engine = ImageEncoderEngine(bundle)
    task = engine.ready(encoders[1])
    features_only, specialized, neutral_scores = engine.run(
        [EncodeItem(images[0], None, None), EncodeItem(images[1], task, task, 5), EncodeItem(images[2], None, task, 5)]
    )
    neutral = bundle.model.encode_image(engine.normalized(images[:3])).numpy()
    assert features_only.predictions is None
    np.testing.assert_allclose(features_only.features, neutral[0], **TOLERANCE)
    np.testing.assert_allclose(neutral_scores.features, neutral[2], **TOLERANCE)
    assert np.abs(specialized.features - neutral[1]).max() > 1e-3
    assert neutral_scores.predictions is not None and len(neutral_scores.predictions) == 3


def test_a_batch_leaves_nothing_behind(
    bundle: Bundle, encoders: Sequence[SpecializedEncoder], images: Sequence[np.ndarray]
) -> None:
    engine = ImageEncoderEngine(bundle)
    first, second = engine.ready(encoders[0]), engine.ready(encoders[1])
    before = engine.run([EncodeItem(images[0], None, None)])[0].features
    engine.run([EncodeItem(images[0], first, first), EncodeItem(images[1], second, second)])
    assert np.array_equal(engine.run([EncodeItem(images[0], None, None)])[0].features, before)


@pytest.fixture(scope="module")
def ready(bundle: Bundle, encoders: Sequence[SpecializedEncoder]) -> list[ReadyTask]:
    engine = ImageEncoderEngine(bundle)
    return [engine.ready(encoder) for encoder in encoders]


def test_a_task_costs_its_values_its_features_and_its_labels(bundle: Bundle, ready: Sequence[ReadyTask]) -> None:
    model = bundle.model.config.image
    values = bundle.model.image_encoder.layout.num_values + 3 * model.embed_dim
    assert ready[1].labels == ("car", "bus", "tram")
    assert ready[1].num_bytes == 4 * values + 10 + 3 * 64


def test_resident_encoders_stay_within_their_bytes(ready: Sequence[ReadyTask]) -> None:
    first, second, third = ready
    told = Told()
    capacity = first.num_bytes + second.num_bytes + third.num_bytes - 1
    resident = ResidentEncoders(capacity_bytes=capacity, metrics=EncoderMetrics(told.publisher))
    resident.put("first", first)
    resident.put("second", second)
    assert resident.get("first") is first  # so the second is the least recently used
    resident.put("third", third)
    assert resident.get("second") is None
    assert resident.get("first") is first and resident.get("third") is third
    assert resident.bytes_used == first.num_bytes + third.num_bytes
    resident.put("first", first)
    assert len(resident) == 2 and resident.bytes_used == first.num_bytes + third.num_bytes
    assert told.values == {
        ("hyperclip_tasks_resident",): 2,
        ("hyperclip_resident_bytes",): resident.bytes_used,
        ("hyperclip_evictions",): 1,
    }


def test_an_encoder_larger_than_the_table_is_not_kept(ready: Sequence[ReadyTask]) -> None:
    resident = ResidentEncoders(capacity_bytes=ready[0].num_bytes, metrics=EncoderMetrics())
    resident.put("small", ready[0])
    resident.put("large", ready[2])
    assert resident.get("large") is None
    assert resident.get("small") is ready[0]


@pytest.mark.parametrize("top_k", [1, 5, 300, 1000])
def test_best_labels_are_those_of_all_scores(top_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image, texts = (F.normalize(torch.randn(n, 16, generator=generator), dim=-1) for n in (1, 300))
    scale, bias = torch.tensor(30.0), torch.tensor(-12.0)
    expected = class_scores(image, texts, logit_scale=scale, logit_bias=bias)
    labels = [f"name {number}" for number in range(300)]
    logits = (scale * (image @ texts.T))[0].numpy()
    found = best_labels(labels, logits, logit_bias=bias.item(), top_k=top_k)
    best = expected.softmax[0].topk(min(top_k, 300))
    assert [one.label for one in found] == [labels[place] for place in best.indices.tolist()]
    np.testing.assert_allclose([one.score for one in found], best.values, **TOLERANCE)
    np.testing.assert_allclose([one.match for one in found], expected.match[0][best.indices], **TOLERANCE)


def test_scores_far_apart_do_not_overflow() -> None:
    found = best_labels(["a", "b"], np.array([-1e6, 1e6], dtype=np.float32), logit_bias=0.0, top_k=2)
    assert [(one.label, one.score, one.match) for one in found] == [("b", 1.0, 1.0), ("a", 0.0, 0.0)]


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


def test_padding_a_batch_changes_no_answer(bundle: Bundle, ready: Sequence[ReadyTask], images: Sequence[np.ndarray]) -> None:
    """As on a GPU, which gets batches of few sizes."""
    engine, padding = ImageEncoderEngine(bundle), ImageEncoderEngine(bundle)
    padding._few_sizes = True
    padding.warm_up(4)
    items = [EncodeItem(image, task, task, 5) for image, task in zip(images, ready, strict=False)]
    found, expected = padding.run(items), engine.run(items)
    assert len(found) == len(items) == 3
    for one, other in zip(found, expected, strict=True):
        assert_close(torch.from_numpy(one.features), torch.from_numpy(other.features), **TOLERANCE)
        assert [best.label for best in one.predictions or ()] == [best.label for best in other.predictions or ()] != []


@pytest.mark.parametrize(("size", "padded"), [(1, 1), (2, 2), (3, 4), (16, 16), (17, 32)])
def test_batches_have_few_sizes(size: int, padded: int) -> None:
    assert padded_size(size) == padded
