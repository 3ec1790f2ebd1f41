"""Generated norms: layout, groups in one pass, neutral parameters, what can and cannot be wrapped."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.unit.model_helpers import image_encoder, random_images
from training.model.generated_norm import wrap_norms
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig
from training.model.parameter_delta import GroupDelta, ParameterLayout


@pytest.mark.parametrize(
    ("trunk", "num_values"), [("efficientnet_b0", 42_016), ("tinynet_e", 14_240), ("mobilenetv3_small_100", 12_112)]
)
def test_every_batch_norm_value_is_generated(trunk: str, num_values: int) -> None:
    encoder = ImageEncoder(ImageEncoderConfig(trunk=trunk, image_size=32, embed_dim=8))
    layout = encoder.layout
    assert layout.num_values == num_values
    parameters = dict(encoder.trunk.named_parameters())
    assert all(parameters[name].shape == (size,) for name, size in layout.sizes)
    names = [name for name, _ in layout.sizes]
    assert len(set(names)) == len(names) == 2 * len(encoder.norms)


def test_split_and_join_are_inverse() -> None:
    layout = image_encoder("test_efficientnet").layout
    flat = torch.randn(3, layout.num_values)
    assert torch.equal(layout.join(layout.split(flat)), flat)


def test_a_delta_that_does_not_fit_is_refused() -> None:
    layout = ParameterLayout((("a.weight", 2), ("a.bias", 3)))
    with pytest.raises(ValueError, match="has 4 values, the encoder generates 5"):
        layout.split(torch.zeros(4))
    with pytest.raises(ValueError, match=r"missing: \['a.bias'\]"):
        layout.join({"a.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"a.weight has 3, not 2"):  # the sum of the sizes is right
        layout.join({"a.weight": torch.zeros(3), "a.bias": torch.zeros(2)})


@pytest.mark.parametrize("trunk", ["test_efficientnet", "convnext_atto"])
def test_groups_in_one_pass_equal_separate_passes(trunk: str) -> None:
    encoder = image_encoder(trunk)
    images = random_images(7)
    deltas = torch.randn(3, encoder.layout.num_values) * 0.1
    group_index = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    together = encoder(images, GroupDelta(deltas, group_index))
    for group in range(3):
        alone = encoder(images[group_index == group], GroupDelta(deltas[group : group + 1]))
        assert_close(together[group_index == group], alone, atol=1e-5, rtol=0)  # fused and split kernels
    assert (together - encoder(images)).abs().max() > 1e-2  # the deltas do something


def test_groups_share_the_batch_statistics_in_training() -> None:
    encoder = image_encoder("test_efficientnet").train()
    other = image_encoder("test_efficientnet").train()
    images = random_images(8)
    delta = torch.randn(1, encoder.layout.num_values) * 0.1
    with torch.no_grad():
        split = encoder(images, GroupDelta(delta.expand(2, -1), torch.tensor([0, 1] * 4)))
        fused = other(images, GroupDelta(delta))
    assert_close(split, fused, atol=1e-5, rtol=0)
    for ours, theirs in zip(encoder.buffers(), other.buffers(), strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_neutral_is_the_base_also_after_a_specialized_pass() -> None:
    encoder = image_encoder("test_efficientnet")
    images = random_images(3)
    neutral = encoder(images)
    encoder(images, GroupDelta(torch.ones(1, encoder.layout.num_values)))
    assert torch.equal(encoder(images), neutral)
    assert torch.equal(encoder(images, GroupDelta(torch.zeros(1, encoder.layout.num_values))), neutral)


def test_several_groups_need_an_index() -> None:
    encoder = image_encoder("test_efficientnet")
    with pytest.raises(ValueError, match="2 groups need a group_index"):
        encoder(random_images(2), GroupDelta(torch.zeros(2, encoder.layout.num_values)))


def test_gradient_reaches_deltas_and_base() -> None:
    encoder = image_encoder("test_efficientnet").requires_grad_(True).train()
    delta = torch.zeros(2, encoder.layout.num_values, requires_grad=True)
    encoder(random_images(4), GroupDelta(delta, torch.tensor([0, 0, 0, 1])))[:, 0].sum().backward()
    assert delta.grad is not None and (delta.grad != 0).any(dim=1).all()
    assert all(norm.weight.grad is not None for norm in encoder.norms.values())


def test_a_network_with_group_norm_is_refused_by_name() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    with pytest.raises(ValueError, match="1 is a GroupNorm; only BatchNorm2d and LayerNorm"):
        wrap_norms(network)
    with pytest.raises(ValueError, match="GroupNorm"):
        ImageEncoder(ImageEncoderConfig(trunk="resnet50_gn", image_size=32, embed_dim=8))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.BatchNorm2d(3, affine=False)), "0 is a BatchNorm2d without scale or bias"),
        (nn.Sequential(nn.LayerNorm(3, bias=False)), "0 is a LayerNorm without scale or bias"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "no normalization layer"),
    ],
)
def test_norms_without_anything_to_generate_are_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrap_norms(network)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match="timm has no network 'nonesuch'"):
        ImageEncoder(ImageEncoderConfig(trunk="nonesuch", image_size=32, embed_dim=8))
