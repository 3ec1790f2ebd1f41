"""Direct tuning: it finds what a topic needs, by deltas of the product's own layers, and leaves the twin alone."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmarks._direct_tuning import AS_GENERATED, Topic, Tuned, topics_of, tune, ways_to_tune
from tests.benchmarks._neutral_twin import neutral_twin
from tests.unit.model_helpers import make_bundle, random_images
from training.bundle import Bundle
from training.evaluation.evaluation_set import EvaluationSet, object_reading
from training.model.registry import hyperclip_test, siglip_twin

NAMES = ("cat", "dog", "cow", "hen")
COLOURS = ("red", "lime", "blue", "black")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("twin") / "bundle", siglip_twin(hyperclip_test()))


def coloured(colour: str, *, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(topics: str = "aaab") -> EvaluationSet:
    """Three pictures of each name, in a colour of its own."""
    names = [name for name in NAMES for _ in range(3)]
    stored = [(str(number), coloured(COLOURS[number // 3], side=30 + number)) for number in range(len(names))]
    objects = object_reading(names, [None] * len(names), [topic for topic in topics for _ in range(3)])
    return EvaluationSet("p", "0", objects, (), tuple(names), None, lambda: iter(stored))


def test_a_topic_is_its_names_with_their_pictures(twin: Bundle) -> None:
    (topic,) = topics_of(twin, pictures(), ["b", "a", "absent"], min_names=2)
    assert (topic.name, topic.labels) == ("a", ("cat", "dog", "cow"))
    assert [picture for name in topic.pictures for picture in name] == [data for _, data in pictures().stored()][:9]
    assert topic.text_features.shape == (3, 32)


def test_the_neutral_twin_is_the_encoder_without_names(tmp_path: Path) -> None:
    config = hyperclip_test()
    image = replace(config.image, generates=("norm", "projection"))
    bundle = make_bundle(tmp_path / "bundle", replace(config, image=image))
    plain = neutral_twin(bundle)
    images = random_images(3, config.image.image_size)
    assert torch.equal(plain.model.encode_image(images), bundle.model.encode_image(images))
    assert plain.model.hypernetwork is None


def test_every_way_learns_the_topic_from_the_same_pictures_and_the_twin_stays(twin: Bundle) -> None:
    topics = topics_of(twin, pictures("aaaa"), ["a"], min_names=2)
    before = {name: value.clone() for name, value in twin.model.state_dict().items()}
    image = twin.model.config.image
    ways = ways_to_tune(image, ("norm", "projection"))
    assert list(ways) == ["norms", "projection", "convolutions", "all_weights", AS_GENERATED]
    losses: list[dict[str, float]] = []
    tuned = tune(
        twin, image, ways, topics, num_steps=25, batch_size=16, seed=0, progress=lambda _, found: losses.append(dict(found))
    )
    first, last = losses[0], {way: np.mean([one[way] for one in losses[-5:]]) for way in ways}
    assert len({round(loss, 4) for loss in first.values()}) == 1  # each begins as the twin
    assert all(last[way] < 0.95 * first[way] for way in ways), (first, last)  # of an untrained model little can be made
    assert last["all_weights"] < 0.8 * first["all_weights"]  # colours, which a part of the pictures loses
    assert tuned["norms"].num_values < tuned[AS_GENERATED].num_values < tuned["all_weights"].num_values
    for name, value in twin.model.state_dict().items():
        assert torch.equal(value, before[name])
    for one in tuned.values():
        for name, norm in one.encoder.norms.items():
            assert torch.equal(norm.running_mean, before[f"image_encoder.trunk.{name}.running_mean"])
    base = tuned["norms"].encoder.state_dict()
    assert all(torch.equal(value, before[f"image_encoder.{name}"]) for name, value in base.items())  # the delta has it all


def test_before_the_first_step_features_are_those_of_the_twin(twin: Bundle) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    image = replace(twin.model.config.image, projection_rank=3)
    plain = Tuned(twin, twin.model.config.image, None, seed=0).encode(pixels, twin)
    assert torch.equal(Tuned(twin, image, ("norm", "projection"), seed=1).encode(pixels, twin), plain)


def test_what_is_tuned_for_several_topics_sees_all_of_them(twin: Bundle, tmp_path: Path) -> None:
    topics = [Topic(name, ("x", "y"), ((coloured("red", side=9),),) * 2, torch.eye(32)[:2]) for name in "abcdef"]
    seen: list[int] = []
    tune(
        twin,
        twin.model.config.image,
        {"norms": ("norm",)},
        topics,
        num_steps=2,
        batch_size=8,
        seed=0,
        progress=lambda step, _: seen.append(step),
    )
    assert seen == [1, 2]
