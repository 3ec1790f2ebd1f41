"""Remembered label features: what they spare, that they change no result, and their bound."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from serving.engines.hypernetwork import HypernetworkEngine
from serving.engines.text_features import TextFeatureCache
from serving.limits import ServingLimits
from serving.metrics import HypernetworkMetrics
from serving.task_record import TaskRecord, make_record
from tests.unit.serving_helpers import Told, make_bundle
from training.bundle import Bundle, load_bundle
from training.specialize import encode_labels, encode_texts, specialize

NAMES = [f"{size} {thing}" for size in ("tiny", "big", "quite enormous and old") for thing in ("cat", "Käse", "tree of a kind")]
TEMPLATES = ["{}", "a drawing of a {} in the style of someone else"]
LAST_BIT = {"atol": 1e-6, "rtol": 0}
"""Other rows in a batch may choose another kernel on a processor that we do not know; here they do not."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(make_bundle(tmp_path_factory.mktemp("model") / "bundle"))


def record_of(*labels: str) -> TaskRecord:
    return make_record(tenant="t", labels=labels, templates=TEMPLATES, pinned_version=None)


@pytest.mark.parametrize("known", [[], NAMES[:1], NAMES[3:7], NAMES[::-1], [*NAMES, "more"]])
def test_the_encoder_does_not_depend_on_what_was_remembered(bundle: Bundle, known: list[str]) -> None:
    cache = TextFeatureCache(capacity_bytes=10**6)
    engine = HypernetworkEngine(bundle, ServingLimits(), text_features=cache)
    if known:
        engine.specialize(record_of(*known))
    found = engine.specialize(record_of(*NAMES))
    expected = specialize(bundle, NAMES, TEMPLATES)
    assert cache.encoded == len({*known, *NAMES})
    assert found.task == expected.task
    assert_close(found.text_features, expected.text_features, **LAST_BIT)
    assert_close(found.delta, expected.delta, atol=1e-5, rtol=0)


def test_a_text_has_the_same_features_in_any_company(bundle: Bundle) -> None:
    texts = [*NAMES, "x " * 40, "word"]
    together = encode_texts(bundle, texts)
    for place, text in enumerate(texts):
        assert_close(encode_texts(bundle, [text])[0], together[place], **LAST_BIT)


def test_templates_and_models_are_kept_apart(bundle: Bundle, tmp_path: Path) -> None:
    other = load_bundle(make_bundle(tmp_path / "other", seed=1))
    cache = TextFeatureCache(capacity_bytes=10**6)
    for model, templates in ((bundle, ["{}"]), (bundle, ["a {}"]), (other, ["{}"])):
        assert_close(cache.encode(model, ["cat"], templates), encode_labels(model, ["cat"], templates), **LAST_BIT)
    assert cache.encoded == len(cache) == 3


def test_memory_is_bounded_and_the_least_recently_used_go_first(bundle: Bundle) -> None:
    probe = TextFeatureCache(capacity_bytes=10**6)
    probe.encode(bundle, ["a"], ["{}"])
    told = Told()
    cache = TextFeatureCache(capacity_bytes=3 * probe.bytes_used, metrics=HypernetworkMetrics(told.publisher))
    cache.encode(bundle, ["a", "b", "c"], ["{}"])
    cache.encode(bundle, ["a"], ["{}"])
    cache.encode(bundle, ["d"], ["{}"])  # pushes b out
    assert len(cache) == 3 and cache.bytes_used == 3 * probe.bytes_used
    assert cache.encoded == 4
    cache.encode(bundle, ["a", "c", "d"], ["{}"])
    assert cache.encoded == 4
    assert told.values == {
        ("hyperclip_labels", "true"): 4,
        ("hyperclip_labels", "false"): 4,
        ("hyperclip_label_bytes",): cache.bytes_used,
    }
    whole = cache.encode(bundle, list("efghi"), ["{}"])  # more than there is room for is answered all the same
    assert_close(whole, encode_labels(bundle, list("efghi"), ["{}"]), **LAST_BIT)
    assert len(cache) == 3


def test_features_of_a_stored_encoder_are_taken_as_they_are(bundle: Bundle) -> None:
    cache = TextFeatureCache(capacity_bytes=10**6)
    engine = HypernetworkEngine(bundle, ServingLimits(), text_features=cache)
    stored = specialize(bundle, NAMES, TEMPLATES)
    engine.remember(stored)
    assert torch.equal(cache.encode(bundle, NAMES[2:4], TEMPLATES), stored.text_features[2:4])
    assert cache.encoded == 0
