"""Folding changes the form of an encoder and nothing else."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.unit.model_helpers import KINDS, image_encoder, random_images
from training.fold import fold_image_encoder
from training.model.generated_norm import GeneratedNorm
from training.model.image_encoder import Kind
from training.model.low_rank import LowRankLayer
from training.model.parameter_delta import GroupDelta


class OddNetwork(nn.Module):
    """Every way in which a norm can stand near a convolution without being foldable into it, and one in which it can."""

    def __init__(self) -> None:
        super().__init__()
        from timm.layers import StdConv2d

        self.first = nn.Conv2d(3, 8, 3, bias=True)
        self.folds = nn.BatchNorm2d(8)
        self.read_twice = nn.Conv2d(8, 8, 1)
        self.beside_a_shortcut = nn.BatchNorm2d(8)
        self.called_twice = nn.Conv2d(8, 8, 1)
        self.after_the_first_call = nn.BatchNorm2d(8)
        self.after_the_second_call = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 1)
        self.behind_an_activation = nn.BatchNorm2d(8)
        self.standardized = StdConv2d(8, 8, 1)
        self.behind_standardized_weights = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.folds(self.first(x)).relu()
        y = self.read_twice(x)
        x = self.beside_a_shortcut(y) + y
        x = self.after_the_first_call(self.called_twice(x))
        x = self.after_the_second_call(self.called_twice(x))
        x = self.behind_an_activation(self.last(x).relu())
        return self.behind_standardized_weights(self.standardized(x)).mean(dim=(2, 3))


@pytest.fixture(scope="module", autouse=True)
def odd_network() -> None:
    image_encoder("test_efficientnet")  # loads timm
    from timm.models import register_model

    def hyperclip_odd_network(pretrained: bool = False, **_kwargs: object) -> nn.Module:
        return OddNetwork()

    register_model(hyperclip_odd_network)


@pytest.mark.parametrize(
    ("trunk", "image_size", "num_left"),
    [
        ("test_efficientnet", 32, 0),
        ("tinynet_e", 48, 0),
        ("mobilenetv3_small_100", 32, 0),
        ("tf_efficientnet_b0", 32, 0),  # pads its convolutions by itself
        ("resnet18", 32, 0),
        ("densenet121", 32, 62),  # norms before the convolutions: only the second of each pair folds
        ("convnext_atto", 32, 17),  # LayerNorm throughout
        ("hyperclip_odd_network", 16, 5),
    ],
)
def test_folded_equals_functional(trunk: str, image_size: int, num_left: int) -> None:
    encoder = image_encoder(trunk, image_size)
    delta = torch.randn(encoder.layout.num_values, generator=torch.Generator().manual_seed(3)) * 0.1
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    folded = fold_image_encoder(encoder, delta)
    images = random_images(4, image_size)
    expected = encoder(images, GroupDelta(delta[None]))
    assert_close(folded(images), expected, atol=5e-6, rtol=0)  # one rounding per weight, sums in another order
    assert (expected - encoder(images)).abs().max() > 1e-3  # the delta does something
    assert sum(isinstance(module, GeneratedNorm) for module in folded.modules()) == num_left
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


ONLY_THE_STEM = ("tinynet_e", "mobilenetv3_small_100")
"""Of their convolutions over more than one pixel, the others are depthwise: nothing much to see in the features."""


@pytest.mark.parametrize(
    ("trunk", "image_size", "generates"),
    [
        (trunk, image_size, generates)
        for trunk, image_size in [
            ("tinynet_e", 48),
            ("test_resnet", 32),
            ("mobilenetv3_small_100", 32),
            ("convnext_atto", 32),
            ("tf_efficientnetv2_b0", 32),  # pads its convolutions by itself, deep inside as well
        ]
        for generates in KINDS[1:]
        if generates != ("convolution",) or trunk not in ONLY_THE_STEM
    ],
)
def test_every_kind_of_delta_folds(trunk: str, image_size: int, generates: tuple[Kind, ...]) -> None:
    encoder = image_encoder(trunk, image_size, generates=generates)
    delta = torch.randn(encoder.layout.num_values, generator=torch.Generator().manual_seed(3)) * 0.1
    folded = fold_image_encoder(encoder, delta)
    assert not any(isinstance(module, LowRankLayer) for module in folded.modules())
    images = random_images(4, image_size)
    per_batch = encoder(images, GroupDelta(delta[None]))
    per_sample = encoder(images, GroupDelta(torch.stack([torch.zeros_like(delta), delta]), torch.ones(4, dtype=torch.long)))
    assert_close(folded(images), per_batch, atol=1e-5, rtol=0)  # sums in another order
    assert_close(per_sample, per_batch, atol=1e-5, rtol=0)
    assert (per_batch - encoder(images)).abs().max() > 1e-3  # the delta does something


def test_the_folded_encoder_stands_alone() -> None:
    encoder = image_encoder("test_efficientnet")
    folded = fold_image_encoder(encoder, torch.zeros(encoder.layout.num_values))
    assert not folded.training and not any(parameter.requires_grad for parameter in folded.parameters())
    theirs = {parameter.data_ptr() for parameter in encoder.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in folded.parameters()}


def test_a_delta_of_another_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="delta has 3 values, the encoder generates"):
        fold_image_encoder(image_encoder("test_efficientnet"), torch.zeros(3))
