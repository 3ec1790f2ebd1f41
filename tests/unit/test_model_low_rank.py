"""Low-rank deltas of projection and convolutions: start, gradient, groups in one pass, which convolutions."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.unit.model_helpers import KINDS, config_with, image_encoder, random_images
from training.model.hyperclip import HyperClip, HyperClipConfig
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig, Kind
from training.model.low_rank import GeneratedConvolution, wrap_pointwise, wrap_spatial
from training.model.parameter_delta import DeltaSlot, GroupDelta
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
    assert (together - encoder(images)).abs().max() > 1e-3  # the deltas do something


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


def test_bytes_of_a_task_are_the_ranks_times_the_channels_written() -> None:
    config = ImageEncoderConfig(
        "efficientnet_b0", 32, 512, generates=ALL, convolution_rank=8, pointwise_rank=4, projection_rank=16
    )
    encoder = ImageEncoder(config)
    written = {True: 0, False: 0}
    for layer in encoder.generated.values():
        if isinstance(layer, GeneratedConvolution):
            written[layer.weight.shape[2:] == (1, 1)] += len(layer.weight)
    # of the convolutions over more than one pixel all but the stem are depthwise
    assert written == {True: 12_016, False: 32}
    assert encoder.num_generated == {"norm": 42_016, "convolution": 8 * 32, "pointwise": 4 * 12_016, "projection": 16 * 512}
    assert encoder.layout.num_values == sum(encoder.num_generated.values())


def test_the_kinds_share_the_convolutions_out_by_their_size() -> None:
    def chosen(*generates: Kind) -> list[str]:
        return list(image_encoder("test_efficientnet", generates=generates).generated)

    plain = image_encoder("test_efficientnet")
    ungrouped = {
        name: conv.kernel_size
        for name, conv in plain.trunk.named_modules()
        if isinstance(conv, nn.Conv2d) and conv.groups == 1 and ".se." not in name
    }
    spatial, pointwise = chosen("convolution"), chosen("pointwise")
    assert spatial == [name for name, size in ungrouped.items() if size != (1, 1)]
    assert pointwise == [name for name, size in ungrouped.items() if size == (1, 1)]
    assert len(spatial) > 1 and chosen("pointwise", "convolution") == [*spatial, *pointwise]


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
    left_alone = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, padding_mode="reflect"))
    with pytest.raises(ValueError, match="has no ungrouped convolution over more than one pixel whose delta"):
        wrap_spatial(left_alone, rank=1, generator=torch.Generator())
    for generates in ((), ("norm", "norm"), ("norms",)):
        with pytest.raises(ValueError, match="name some of norm, convolution, pointwise, projection, each once"):
            ImageEncoderConfig("tinynet_e", 32, 8, generates=generates)  # type: ignore[arg-type]
    for rank in ("convolution_rank", "pointwise_rank", "projection_rank"):
        with pytest.raises(ValueError, match=f"ranks must be positive: .*{rank}=0"):
            ImageEncoderConfig("tinynet_e", 32, 8, **{rank: 0})  # type: ignore[arg-type]


def test_a_configuration_from_before_there_were_kinds_generates_the_norms() -> None:
    old = config_with().to_dict()
    for key in ("generates", "convolution_rank", "pointwise_rank", "pointwise_stages", "projection_rank"):
        del old["image"][key]
    assert HyperClipConfig.from_dict(old) == config_with()


def test_a_configuration_comes_back_from_json() -> None:
    config = config_with(generates=ALL)
    values = config.to_dict()
    values["image"]["generates"] = list(ALL)
    assert HyperClipConfig.from_dict(values) == config


@pytest.mark.parametrize("rank", [1, 4, 8])
@pytest.mark.parametrize(
    "conv", [nn.Conv2d(3, 64, 3), nn.Conv2d(96, 8, 3), nn.Conv2d(16, 16, 5)], ids=["widens", "narrows", "5x5"]
)
def test_a_unit_of_what_is_generated_changes_a_kernel_by_its_own_size(conv: nn.Conv2d, rank: int) -> None:
    layer = GeneratedConvolution(conv, rank=rank, generator=torch.Generator().manual_seed(0))
    write = torch.randn(len(conv.weight) * rank, generator=torch.Generator().manual_seed(1))
    change = layer.weight_under(write) - layer.weight
    assert 0.6 < (change.std() / conv.weight.std()).item() < 1.6  # chance, in so few numbers


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "one pixel, strided": {"kernel_size": 1, "stride": 2},
    "square": {"kernel_size": 3, "padding": 1},
    "strided, with a border": {"kernel_size": 5, "stride": 2, "padding": 2, "bias": False},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "oblong, uneven": {"kernel_size": (1, 5), "stride": (2, 1), "padding": (0, 2)},
    "padded by name": {"kernel_size": 3, "padding": "same"},
}


@pytest.mark.parametrize("form", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_keeps_its_form_under_every_delta(form: dict[str, Any]) -> None:
    assert_layer_does_what_its_formula_says(nn.Conv2d(6, 5, **form))


@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_that_pads_by_itself_keeps_doing_so(size: int) -> None:
    image_encoder("test_efficientnet")  # loads timm
    from timm.layers import Conv2dSame

    assert_layer_does_what_its_formula_says(Conv2dSame(6, 5, size, stride=2))


def assert_layer_does_what_its_formula_says(conv: nn.Conv2d) -> None:
    """Neutral, one group, several, and folded, against the convolution itself with weight + write @ read."""
    conv.requires_grad_(False)
    layer = GeneratedConvolution(conv, rank=2, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    x = torch.randn(3, 6, 9, 8)
    assert torch.equal(layer(x), conv(x))
    writes = torch.randn(2, 10)
    expected = []
    for write in writes:
        changed = copy.deepcopy(conv)
        changed.weight += (write.view(5, 2) @ layer.read).view_as(conv.weight)
        expected.append(changed(x))
        layer.delta = DeltaSlot({"write": write[None]}, None)
        assert_close(layer(x), expected[-1])
        assert_close(layer.plain(write)(x), expected[-1])
    layer.delta = DeltaSlot({"write": writes}, torch.tensor([1, 0, 1]))
    assert_close(layer(x), torch.stack([expected[1][0], expected[0][1], expected[1][2]]), atol=1e-5, rtol=1e-5)
