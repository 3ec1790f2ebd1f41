"""A bundle in half precision is half as large and the same model, or it is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from infra.errors import BadInputError
from tests.unit.model_helpers import random_images, trained_like
from training.bundle import Precision, load_bundle, save_bundle
from training.half_precision import half_precision, rounded
from training.model.hyperclip import HyperClip
from training.model.registry import hyperclip_test
from training.preprocess import PreprocessConfig


def save(folder: Path, model: HyperClip, precision: Precision) -> Path:
    save_bundle(
        folder,
        model,
        preprocess=PreprocessConfig(image_size=32),
        templates=["{}"],
        model_card="",
        metrics={},
        precision=precision,
    )
    return folder


@pytest.fixture(scope="module")
def model() -> HyperClip:
    return trained_like(hyperclip_test())


def test_a_bundle_in_half_precision_is_read_back_as_float32(model: HyperClip, tmp_path: Path) -> None:
    single, half = save(tmp_path / "single", model, "float32"), save(tmp_path / "half", model, "float16")
    size = [(folder / "model.safetensors").stat().st_size for folder in (single, half)]
    assert size[1] < 0.52 * size[0]  # vectors and the file's own header stay
    found = load_bundle(half).model  # which has proven its golden features
    assert {value.dtype for value in found.parameters()} == {torch.float32}
    assert torch.equal(found.encode_image(random_images(4)), rounded(model).encode_image(random_images(4)))
    # matrices of about 1 lose half of 2 ** -10 at most, and features are unit vectors
    assert_close(found.encode_image(random_images(4)), model.encode_image(random_images(4)), atol=5e-3, rtol=0)
    assert load_bundle(half).digest != load_bundle(single).digest


def test_only_matrices_and_kernels_are_rounded(model: HyperClip, tmp_path: Path) -> None:
    stored = load_file(save(tmp_path / "half", model, "float16") / "model.safetensors")
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dim() >= 2:
            assert stored[name].dtype == torch.float16, name
        else:
            assert stored[name].dtype == value.dtype and torch.equal(stored[name], value), name
    kept = {name.rpartition(".")[2] for name, value in stored.items() if value.dtype != torch.float16}
    assert {"log_scale", "bias", "running_mean", "running_var", "weight"} <= kept


def test_a_variance_beyond_half_precision_survives(tmp_path: Path) -> None:
    model = trained_like(hyperclip_test())
    name, variance = next((name, value) for name, value in model.named_buffers() if name.endswith("running_var"))
    variance[:2] = torch.tensor([1e6, 1e-9])
    found = load_bundle(save(tmp_path / "half", model, "float16")).model.get_buffer(name)
    assert torch.equal(found, variance)


@pytest.mark.parametrize("value", [7e4, float("inf"), float("nan")])
def test_a_weight_that_half_precision_cannot_hold_is_refused_by_name(value: float) -> None:
    with pytest.raises(BadInputError, match=r"^wide\.weight holds .* half precision ends at 65,504"):
        half_precision({"wide.weight": torch.full((2, 2), value), "wide.bias": torch.full((2,), value)})


def test_rounding_leaves_the_model_alone(model: HyperClip) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounded(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
