"""The benchmark of an encoder's cost: a specialized encoder is a plain one on a device, and the rivals are built right."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.benchmarks._int8 import answers, quantize
from tests.benchmarks._neutral_twin import neutral_twin
from tests.benchmarks._on_device import num_flops, num_parameters, passes, peak_memory
from tests.benchmarks._vit import vit_like
from tests.benchmarks.encoder_cost import NUM_NAMES, Sample, Side, bytes_of, make_side, same_as_plain
from tests.unit.model_helpers import KINDS, config_with, make_bundle
from training.bundle import Bundle
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig

SIDE = 32
LABELS = [f"thing {number}" for number in range(NUM_NAMES)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle", config_with("test_resnet", SIDE, KINDS[-1]))


@pytest.fixture(scope="module")
def specialized(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Side:
    return make_side(bundle, LABELS, tmp_path_factory.mktemp("specialized") / "package")


def test_a_specialized_encoder_is_as_large_as_a_plain_one(bundle: Bundle, specialized: Side, tmp_path: Path) -> None:
    plain = make_side(neutral_twin(bundle), LABELS, tmp_path / "plain")
    found = same_as_plain(specialized, plain)
    assert all(one["ok"] for one in found.values()), found
    images = np.random.default_rng(0).normal(size=(64, 3, SIDE, SIDE)).astype(np.float32)
    assert (answers(specialized.file, images) != answers(plain.file, images)).any()  # and another one all the same
    smaller = same_as_plain(specialized, Side(plain.file, plain.parameters - 1, plain.flops))
    assert [name for name, one in smaller.items() if not one["ok"]] == ["parameters_unlike_plain"]


def test_one_task_takes_a_small_part_of_the_model(bundle: Bundle, specialized: Side, tmp_path: Path) -> None:
    found = bytes_of(bundle, LABELS, tmp_path / "task", encoder_parameters=specialized.parameters)
    values = {name: one["value"] for name, one in found.items()}
    assert values["delta"] == pytest.approx(4 * sum(bundle.model.num_generated.values()), rel=1e-3)  # four digits
    assert values["delta"] < values["delta_with_labels_on_disk"] < values["hyperclip"]


@pytest.mark.parametrize("num_wanted", [100_000, 5_000_000])
def test_the_vit_has_about_as_many_parameters(num_wanted: int) -> None:
    plain = ImageEncoder(ImageEncoderConfig(trunk="test_resnet", image_size=48, embed_dim=128))
    found = vit_like(plain, num_parameters=num_wanted)
    assert num_parameters(ImageEncoder(found)) == pytest.approx(num_wanted, rel=0.05)
    assert vit_like(plain, num_parameters=num_wanted) == found


def test_attention_counts_among_the_flops() -> None:
    config = vit_like(ImageEncoder(ImageEncoderConfig("test_resnet", 48, 16)), num_parameters=20_000)
    trunk = ImageEncoder(config).trunk.eval()
    tokens, width, depth, patch = 37, trunk.embed_dim, len(trunk.blocks), 8
    embedding = 36 * 3 * patch**2 * width
    blocks = depth * (12 * tokens * width**2 + 2 * tokens**2 * width)  # maps of every token, then token by token
    assert num_flops(trunk, 48) == 2 * (embedding + blocks)


def test_int8_is_smaller_and_mostly_of_one_mind(specialized: Side, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(48, 3, SIDE, SIDE)).astype(np.float32)
    quantize(specialized.file, tmp_path / "int8.onnx", calibration=images)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    scales = [value for value in graph.initializer if value.name.endswith("weight_scale") and value.dims]
    assert scales  # one for each channel
    assert (tmp_path / "int8.onnx").stat().st_size < 0.6 * specialized.file.stat().st_size
    full, eight = answers(specialized.file, images), answers(tmp_path / "int8.onnx", images)
    assert full.shape == (48,)
    assert (full == eight).mean() > 0.7  # of an untrained model, whose scores lie close together
    assert passes(tmp_path / "int8.onnx", SIDE)() > 0


def test_memory_of_a_session_is_that_of_the_model_and_not_of_this_process(specialized: Side) -> None:
    held = np.ones(100_000_000)  # 800 MB
    found = peak_memory(specialized.file, SIDE, processes=1)
    assert specialized.file.stat().st_size < found < held.nbytes / 4


def test_the_tasks_take_every_evaluation_picture_at_most_once(bundle: Bundle) -> None:
    sample = Sample.of(bundle, num_tasks=None)
    taken = [picture for task in sample.tasks for picture in task.pictures]
    assert len(set(taken)) == len(taken) > len(sample.pictures) - NUM_NAMES
    assert len(sample.calibration) == 128
