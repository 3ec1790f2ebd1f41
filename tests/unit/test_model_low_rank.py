"""Low-rank deltas of projection and 1x1 convolutions: start, gradient, groups in one pass, which convolutions."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.unit.model_helpers import KINDS, config_with, image_encoder, random_images
from training.model.hyperclip import HyperClip, HyperClipConfig
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig, Kind
from training.model.low_rank import GeneratedPointwise, wrap_pointwise
from training.model.parameter_delta import GroupDelta
from training.model.registry import siglip_twin
from training.tokenizer import Tokenizer

ALL = KINDS[-1]
CAPTIONS = ["a cat", "a dog", "a red bicycle"]


def seeded(config: HyperClipConfig) -> HyperClip:
    torch.manual_seed(7)
    return HyperClip(config)


@pytest.mark.parametrize(("basis", "zero_mean"), [(None, False), (8, False), (None, True), (8, True)])
@pytest.mark.parametrize("generates", KINDS, ids="+".join)
def test_at_step_0_every_model_is_bit_equal_to_its_twin(
    generates: tuple[Kind, ...], basis: int | None, *, zero_mean: bool
) -> None:
    config = config_with(generates=generates, basis=basis, zero_mean=zero_mean)
    hyperclip, twin = seeded(config), seeded(siglip_twin(config))
    ours = hyperclip.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in twin.state_dict().items())
    only_ours = ours.keys() - twin.state_dict().keys()
    assert all(name.startswith("hypernetwork.") or name.endswith(".read") for name in only_ours)
    images, tokens = random_images(6), Tokenizer()(CAPTIONS)
    for train in (True, False):
        hyperclip.train(train)
        twin.train(train)
        delta = hyperclip.generate(hyperclip.encode_text(tokens)[None])
        assert torch.count_nonzero(delta) == 0
        assert torch.equal(hyperclip.encode_image(images, GroupDelta(delta)), twin.encode_image(images))


@pytest.mark.parametrize("trunk", ["test_efficientnet", "test_resnet", "convnext_atto"])
def test_a_zero_delta_per_image_changes_no_bit(trunk: str) -> None:
    encoder = image_encoder(trunk, generates=("pointwise", "projection"))
    zeros = GroupDelta(torch.zeros(2, encoder.layout.num_values), torch.tensor([0, 1, 1]))
    images = random_images(3)
    assert torch.equal(encoder(images, zeros), encoder(images))


@pytest.mark.parametrize(("basis", "zero_mean"), [(None, False), (8, False), (None, True), (8, True)])
def test_the_first_step_reaches_every_generated_value(basis: int | None, *, zero_mean: bool) -> None:
    model = seeded(config_with(generates=ALL, basis=basis, zero_mean=zero_mean))
    assert model.hypernetwork is not None
    delta = model.generate(model.encode_text(Tokenizer()(CAPTIONS))[None])
    model.encode_image(random_images(4), GroupDelta(delta)).square().mul(torch.arange(32)).sum().backward()
    weight = model.hypernetwork.output.weight.grad
    assert weight is not None
    gradient = weight.abs().sum(dim=1)
    for name, part in model.image_encoder.layout.split(gradient).items():
        assert torch.count_nonzero(part) > len(part) / 2, name


@pytest.mark.parametrize("generates", KINDS[1:], ids="+".join)
@pytest.mark.parametrize("trunk", ["test_efficientnet", "test_resnet", "convnext_atto"])
def test_groups_in_one_pass_equal_separate_passes(trunk: str, generates: tuple[Kind, ...]) -> None:
    encoder = image_encoder(trunk, generates=generates)
    images = random_images(7)
    deltas = torch.randn(3, encoder.layout.num_values, generator=torch.Generator().manual_seed(1)) * 0.1
    group_index = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    together = encoder(images, GroupDelta(deltas, group_index))
    for group in range(3):
        alone = encoder(images[group_index == group], GroupDelta(deltas[group : group + 1]))
        assert_close(together[group_index == group], alone, atol=1e-5, rtol=0)  # sums in another order
    assert (together - encoder(images)).abs().max() > 1e-2  # the deltas do something


@pytest.mark.parametrize("generates", KINDS[1:], ids="+".join)
def test_one_group_and_many_equal_ones_have_the_same_gradients(generates: tuple[Kind, ...]) -> None:
    images, found = random_images(6), []
    for index in (None, torch.tensor([0, 1] * 3)):
        encoder = image_encoder("test_efficientnet", generates=generates).requires_grad_(True).train()
        delta = torch.full((1, encoder.layout.num_values), 0.02, requires_grad=True)
        groups = GroupDelta(delta if index is None else delta.expand(2, -1), index)
        encoder(images, groups).square().mul(torch.arange(16)).sum().backward()
        gradients = {name: value.grad for name, value in encoder.named_parameters()} | {"delta": delta.grad}
        found.append({name: gradient for name, gradient in gradients.items() if gradient is not None})
    assert found[0].keys() == found[1].keys()
    largest = max(gradient.abs().max().item() for gradient in found[0].values())
    for name, gradient in found[0].items():
        # sums in another order; what a norm behind it takes out again has a gradient of noise alone
        assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_bytes_of_a_task_are_the_rank_times_the_channels_written() -> None:
    config = ImageEncoderConfig("efficientnet_b0", 32, 512, generates=ALL, pointwise_rank=4, projection_rank=16)
    encoder = ImageEncoder(config)
    written = sum(len(layer.weight) for layer in encoder.generated.values() if isinstance(layer, GeneratedPointwise))
    assert encoder.num_generated == {"norm": 42_016, "pointwise": 4 * written, "projection": 16 * 512}
    assert encoder.layout.num_values == sum(encoder.num_generated.values())
    assert written == 12_016


def test_stages_choose_the_convolutions_at_the_end() -> None:
    def chosen(stages: int | None) -> list[str]:
        config = ImageEncoderConfig("tinynet_e", 32, 8, generates=("pointwise",), pointwise_stages=stages)
        return list(ImageEncoder(config).generated)

    blocks = [f"blocks.{block}.{conv}" for block in ("5.0", "5.1", "6.0") for conv in ("conv_pw", "conv_pwl")]
    assert chosen(1) == [*blocks, "conv_head"]
    assert len(chosen(1)) < len(chosen(2)) < len(chosen(5)) == len(chosen(None))
    with pytest.raises(ValueError, match=r"pointwise_stages=6: EfficientNet has the stages blocks\.0, "):
        chosen(6)


def test_nothing_to_generate_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no 1x1 convolution there"):
        wrap_pointwise(nn.Sequential(nn.Conv2d(3, 4, 3)), rank=1, last_stages=None, generator=torch.Generator())
    for generates in ((), ("norm", "norm"), ("norms",)):
        with pytest.raises(ValueError, match="name some of norm, pointwise, projection, each once"):
            ImageEncoderConfig("tinynet_e", 32, 8, generates=generates)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ranks must be positive"):
        ImageEncoderConfig("tinynet_e", 32, 8, pointwise_rank=0)


def test_a_configuration_from_before_there_were_kinds_generates_the_norms() -> None:
    old = config_with().to_dict()
    for key in ("generates", "pointwise_rank", "pointwise_stages", "projection_rank"):
        del old["image"][key]
    assert HyperClipConfig.from_dict(old) == config_with()


def test_a_configuration_comes_back_from_json() -> None:
    config = config_with(generates=ALL)
    values = config.to_dict()
    values["image"]["generates"] = list(ALL)
    assert HyperClipConfig.from_dict(values) == config


def test_strided_convolutions_and_biases_are_kept() -> None:
    conv = nn.Conv2d(6, 5, 1, stride=2, bias=True)
    layer = GeneratedPointwise(conv, rank=2, generator=torch.Generator())
    x = torch.randn(2, 6, 7, 7)
    assert torch.equal(layer(x), conv(x))
    assert_close(layer.plain(torch.ones(10))(x) - conv(x), layer.plain(2 * torch.ones(10))(x) - layer.plain(torch.ones(10))(x))
