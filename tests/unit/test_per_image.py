"""Parameters prepared per picture give what the neutral encoder gives with the same delta."""

import pytest
import torch
from torch.testing import assert_close

from tests.unit.model_helpers import KINDS, image_encoder, random_images
from training.model.image_encoder import Kind
from training.model.parameter_delta import GroupDelta
from training.per_image import PerImageEncoder

TRUNKS = [
    ("test_efficientnet", 32),
    ("tinynet_e", 48),
    ("test_resnet", 32),
    ("convnext_atto", 32),  # LayerNorm throughout, channels first and last
    ("tf_efficientnetv2_b0", 32),  # pads its convolutions by itself
]


@pytest.mark.parametrize(("trunk", "image_size"), TRUNKS)
@pytest.mark.parametrize("generates", [KINDS[0], KINDS[-1]], ids="+".join)
def test_every_picture_has_its_own_parameters(trunk: str, image_size: int, generates: tuple[Kind, ...]) -> None:
    encoder = image_encoder(trunk, image_size, generates=generates)
    deltas = torch.randn(3, encoder.layout.num_values, generator=torch.Generator().manual_seed(3)) * 0.1
    deltas[2] = 0
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    index = torch.tensor([0, 1, 0, 2])
    images = random_images(len(index), image_size)
    per_image = PerImageEncoder(encoder)
    rows = torch.stack([per_image.prepare(delta) for delta in deltas])
    expected = encoder(images, GroupDelta(deltas, index))
    found = per_image(images.contiguous(memory_format=torch.channels_last), rows[index])
    assert_close(found, expected, atol=5e-6, rtol=0)  # one rounding per value, sums in another order
    assert_close(found[3:], encoder(images[3:]), atol=5e-6, rtol=0)
    assert (found[0] - encoder(images[:1])[0]).abs().max() > 1e-3  # the delta does something
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_it_keeps_no_parameters_of_its_own() -> None:
    encoder = image_encoder("test_resnet", generates=KINDS[-1])
    theirs = {tensor.data_ptr() for tensor in (*encoder.parameters(), *encoder.buffers())}
    assert {tensor.data_ptr() for tensor in PerImageEncoder(encoder).parameters()} <= theirs


def test_a_delta_of_another_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="delta has 3 values, the encoder generates"):
        PerImageEncoder(image_encoder("test_efficientnet")).prepare(torch.zeros(3))
