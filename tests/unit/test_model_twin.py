"""At step 0 HyperCLIP is its SigLIP twin, and its encoder is the timm network."""

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.unit.model_helpers import random_images, trained_like
from training.model.hyperclip import HyperClip
from training.model.parameter_delta import GroupDelta
from training.model.registry import hyperclip_test, siglip_twin
from training.tokenizer import Tokenizer

CAPTIONS = ["a cat", "a dog", "a red bicycle"]


def untrained_pair() -> tuple[HyperClip, HyperClip]:
    models = []
    for config in (hyperclip_test(), siglip_twin(hyperclip_test())):
        torch.manual_seed(7)
        models.append(HyperClip(config))
    return models[0], models[1]


def test_same_seed_gives_the_twin_the_same_weights() -> None:
    hyperclip, twin = untrained_pair()
    ours = hyperclip.state_dict()
    assert twin.state_dict().keys() == {name for name in ours if not name.startswith("hypernetwork.")}
    assert all(torch.equal(value, ours[name]) for name, value in twin.state_dict().items())


def test_at_step_0_features_are_bit_equal_to_the_twins() -> None:
    hyperclip, twin = untrained_pair()
    images, tokens = random_images(6), Tokenizer()(CAPTIONS)
    for train in (True, False):
        hyperclip.train(train)
        twin.train(train)
        text_features = hyperclip.encode_text(tokens)
        delta = hyperclip.generate(text_features[None])
        assert torch.count_nonzero(delta) == 0
        assert torch.equal(text_features, twin.encode_text(tokens))
        assert torch.equal(hyperclip.encode_image(images, GroupDelta(delta)), twin.encode_image(images))
    # the statistics of the training pass as well
    for ours, theirs in zip(hyperclip.image_encoder.buffers(), twin.image_encoder.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_first_step_reaches_the_hypernetwork() -> None:
    hyperclip, _ = untrained_pair()
    delta = hyperclip.generate(hyperclip.encode_text(Tokenizer()(CAPTIONS))[None])
    hyperclip.encode_image(random_images(4), GroupDelta(delta))[:, 0].sum().backward()
    assert hyperclip.hypernetwork is not None
    gradient = hyperclip.hypernetwork.output.weight.grad
    assert gradient is not None and torch.count_nonzero(gradient) > 0


def test_the_wrapped_encoder_is_the_timm_network() -> None:
    config = hyperclip_test()
    encoder = trained_like(config).image_encoder
    import timm  # only now: the encoder repairs torchvision beside a CPU build of torch

    plain = timm.create_model(config.image.trunk, pretrained=False, num_classes=0)
    loaded = plain.load_state_dict(encoder.trunk.state_dict(), strict=False)
    assert not loaded.unexpected_keys and all(name.endswith("num_batches_tracked") for name in loaded.missing_keys)
    images = random_images(6)
    neutral = torch.zeros(1, encoder.layout.num_values)
    # evaluation last: the training pass moves the running statistics of both
    for train in (True, False):
        encoder.train(train)
        plain.train(train)
        with torch.no_grad():
            expected = F.normalize(encoder.projection(plain(images)), dim=-1)
            assert_close(encoder(images), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        assert_close(encoder(images, GroupDelta(neutral)), expected, atol=1e-5, rtol=0)
