"""The rivals: pooling that starts as the twin, a harness that learns as training does, both judged on the same tasks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from infra.errors import BadInputError
from tests.benchmarks import _rival_training
from tests.benchmarks._gain import HYPERCLIP, MATCHED, TWIN
from tests.benchmarks._on_device import session_of
from tests.benchmarks._rival_training import SET, Course, Rival, contrastive_loss, judged, rival_accuracies, train_rival
from tests.benchmarks._sweep_of_results import SWEEP, Part
from tests.benchmarks._text_pooling import PoolingClassifier, TextPooling
from tests.benchmarks._vit import with_vit
from tests.benchmarks.vit_of_equal_accuracy import Size, smallest_as_accurate
from tests.training_runs import small_config, write_shard
from tests.unit.model_helpers import config_with, make_bundle, random_images, trained_like
from training.bundle import Bundle
from training.config import TrainConfig
from training.data import TrainingBatches
from training.evaluation.evaluation_set import EvaluationSet
from training.evaluation.shard_set import shard_set
from training.evaluation.zero_shot import EvaluationConfig, evaluate_zero_shot
from training.model.hyperclip import HyperClip
from training.model.image_encoder import ImageEncoder
from training.model.registry import siglip_twin
from training.objective import ContrastiveObjective
from training.shard_reader import open_shards

SIDE = 64
TASKS = EvaluationConfig(ways=(5,), kinds=("random",), num_tasks=6, recall_at=())


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("twin") / "bundle", siglip_twin(config_with("test_resnet", SIDE)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shards") / "train")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> EvaluationSet:
    folder = write_shard(tmp_path_factory.mktemp("held") / "evaluation", split="evaluation", num_samples=40)
    return shard_set(open_shards(str(folder)), readings={})


def run_config(**changes: object) -> TrainConfig:
    conditioning = {"groups": [1]}
    return small_config({"model": "siglip_test", "conditioning": conditioning, "num_steps": 4, **changes})


def pooling_on(twin: Bundle, *, seed: int = 0) -> TextPooling:
    torch.manual_seed(seed)
    model = HyperClip(twin.model.config)
    model.load_state_dict(twin.model.state_dict())
    return TextPooling(model)


def texts(count: int, dim: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(1)), dim=-1)


def taught(rival: TextPooling) -> TextPooling:
    """With a pooling that says something."""
    torch.manual_seed(3)
    torch.nn.init.normal_(rival.pooling.output.weight, std=0.1)
    return rival.requires_grad_(False).eval()


# ---- the pooling -----------------------------------------------------------------------------------------------------


def test_before_the_first_step_the_pooling_is_the_twin(twin: Bundle) -> None:
    rival = pooling_on(twin).eval().requires_grad_(False)
    images, names = random_images(5, SIDE), texts(7, 32)
    features, tokens = rival.see(images)
    assert torch.equal(features, twin.model.encode_image(images))
    assert tokens.shape == (5, 2 * 2 + 1, 96) and torch.allclose(tokens[:, :-1].mean(dim=1), tokens[:, -1], atol=1e-6)
    torch.testing.assert_close(rival.cosines((features, tokens), names), features @ names.T)
    before, after = twin.model.state_dict(), rival.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # its making has counted in no statistics


def test_each_name_is_compared_for_itself_whatever_the_order_and_the_others(
    twin: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = taught(pooling_on(twin))
    seen, names = rival.see(random_images(5, SIDE)), texts(7, 32)
    cosines = rival.cosines(seen, names)
    assert (cosines - seen[0] @ names.T).abs().max() > 0.01
    assert cosines.abs().max() <= 1 + 1e-6
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(rival.cosines(seen, names[order]), cosines[:, order])
    torch.testing.assert_close(rival.cosines(seen, names[2:3]), cosines[:, 2:3])
    monkeypatch.setattr("tests.benchmarks._text_pooling.TEXTS_TIMES_PICTURES", 15)  # two pictures at once
    torch.testing.assert_close(rival.cosines(seen, names), cosines)


def test_every_parameter_of_the_rival_learns(twin: Bundle, shards: Path) -> None:
    rival = pooling_on(twin)
    before = {name: value.detach().clone() for name, value in rival.named_parameters()}
    train_rival(rival, run_config(model="siglip_quickstart", num_steps=2), str(shards), title="t")  # 48 px, the trunk takes any
    assert [name for name, value in rival.named_parameters() if torch.equal(value, before[name])] == []


def test_on_a_device_the_pooling_says_the_same(twin: Bundle, tmp_path: Path) -> None:
    rival, names, images = taught(pooling_on(twin)), texts(7, 32), random_images(3, SIDE)
    classifier = PoolingClassifier(rival, names)
    expected = rival.cosines(rival.see(images), names)
    torch.testing.assert_close(classifier(images), expected, atol=1e-4, rtol=0)
    path = classifier.to_onnx(tmp_path / "model.onnx", side=SIDE)
    (found,) = session_of(path).run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


# ---- the harness -----------------------------------------------------------------------------------------------------


def test_the_loss_and_its_gradient_are_those_of_training(shards: Path) -> None:
    config = run_config()
    batch = next(TrainingBatches(open_shards(str(shards)), config, rank=0, world_size=1).starting_at(0))
    ours, theirs = (trained_like(config.architecture()).requires_grad_(True).train() for _ in range(2))
    loss = contrastive_loss(Rival(ours), batch)
    expected = ContrastiveObjective(theirs, config.conditioning, seed=0)(batch, step=0, batch_number=0).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-3)


def test_a_plain_rival_is_judged_as_its_model_is(twin: Bundle, held: EvaluationSet) -> None:
    result = evaluate_zero_shot([twin], held, TASKS, progress=lambda *_: None)
    found = rival_accuracies(Rival(twin.model), twin, held, TASKS, reading="neutral")
    for family in result.families:
        assert found[family.family.slug].readings["neutral"] == pytest.approx(family.unit_accuracies["neutral"][0])


def test_what_was_trained_once_is_read_the_next_time(
    twin: Bundle, shards: Path, held: EvaluationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [run_config(model="siglip_quickstart", num_steps=2), run_config(model="siglip_quickstart", num_steps=1)]
    course = Course(stages, str(shards), str(tmp_path / "rivals"), twin, held, TASKS)
    found = judged("llip", "pooled", lambda: pooling_on(twin), course, start={"twin": twin.digest})
    assert len(found.accuracies.kinds["5_way"].readings["pooled"]) == TASKS.num_tasks
    monkeypatch.setattr(_rival_training, "train_rival", None)
    assert judged("llip", "pooled", lambda: pooling_on(twin), course, start={"twin": twin.digest}) == found
    with pytest.raises(TypeError, match="not callable"):  # another twin is another rival
        judged("llip", "pooled", lambda: pooling_on(twin), course, start={"twin": "other"})


def test_a_rival_learns_what_training_teaches(shards: Path) -> None:
    config = run_config(num_steps=12, loader_workers=0)
    torch.manual_seed(config.seed)
    losses = train_rival(Rival(HyperClip(config.architecture())), config, str(shards), title="t").losses
    assert len(losses) == 12 and losses[-1] < losses[0]


# ---- the ViTs and the part of the sweep ------------------------------------------------------------------------------


def test_a_vit_of_given_sizes_takes_the_place_of_the_trunk(twin: Bundle) -> None:
    config = Size(patch=8, width=32, depth=2).model(twin)
    model = HyperClip(config)
    trunk = model.image_encoder.trunk
    assert (trunk.embed_dim, len(trunk.blocks), trunk.patch_embed.num_patches) == (32, 2, (SIDE // 8) ** 2)
    assert model.encode_image(random_images(2, SIDE)).shape == (2, 32)
    assert Size(8, 32, 2).name == "vit-32x2-patch-8"
    with pytest.raises(BadInputError, match="64 pixels do not divide into patches of 6"):
        with_vit(twin.model.image_encoder, patch=6, width=32, depth=2)
    with pytest.raises(BadInputError, match="a width of 33 does not divide into 2 heads"):
        with_vit(ImageEncoder(replace(twin.model.config.image)), patch=8, width=33, depth=2)


def test_the_smallest_that_is_as_accurate_is_named() -> None:
    sizes = [Size(8, 96, 4), Size(8, 64, 4), Size(8, 32, 4)]
    measures = {f"{size.name}.parameters": {"value": size.width} for size in sizes}
    ratios = dict(zip((size.name for size in sizes), (1.1, 1.0, 0.99), strict=True))
    assert smallest_as_accurate(sizes, ratios, measures) == sizes[1].name
    assert smallest_as_accurate(sizes, dict.fromkeys(ratios, 0.5), measures) is None


def test_a_part_of_the_sweep_has_the_arms_it_needs() -> None:
    tree = yaml.safe_load(SWEEP.read_text())
    part = Part("rivals", (HYPERCLIP, MATCHED), SET).of(tree)
    assert list(part["arms"]) == ["all-pictures", TWIN, HYPERCLIP, MATCHED]
    assert all(part["arms"][name] == tree["arms"][name] for name in part["arms"])
    assert [HYPERCLIP, MATCHED] in part["compare"] and [HYPERCLIP, "tokens"] not in part["compare"]
    assert list(part["evaluate"]) == [SET] and part["name"] == "sweep-results-rivals"
