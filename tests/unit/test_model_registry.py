"""Model configurations: by name, to and from plain values, refused when they make no sense."""

import json
from dataclasses import replace
from typing import Any

import pytest

from training.model.hyperclip import HyperClip, HyperClipConfig
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig
from training.model.registry import MODELS, hyperclip_test, model_config, siglip_twin


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_configuration_survives_json(name: str) -> None:
    config = model_config(name)
    assert config.name == name
    assert HyperClipConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", sorted(name for name in MODELS if name.startswith("hyperclip_")))
def test_every_hyperclip_has_its_twin(name: str) -> None:
    config = model_config(name)
    twin = model_config(name.replace("hyperclip", "siglip"))
    assert twin == siglip_twin(config)
    assert twin.hypernetwork is None and twin.text == config.text
    assert twin.image == replace(config.image, generates=("norm",))


@pytest.mark.parametrize(("name", "image_parameters"), [("micro", 97_472), ("nano", 32_376)])
def test_trunks_are_made_smaller_than_timms(name: str, image_parameters: int) -> None:
    twin, config = model_config(f"siglip_{name}"), model_config(f"hyperclip_{name}")
    assert sum(parameter.numel() for parameter in ImageEncoder(twin.image).parameters()) == image_parameters
    encoder = ImageEncoder(config.image)
    learned = {key: value.numel() for key, value in encoder.named_parameters() if not key.endswith(".read")}
    assert sum(learned.values()) == image_parameters
    assert set(encoder.num_generated) == {"norm", "convolution", "pointwise", "projection"}


@pytest.mark.parametrize(
    "options",
    [
        {"pretrained": True},
        {"checkpoint_path": "/etc/passwd"},
        {"channels": 8},
        {"channels": []},
        {"channels": [8, 16, 24, "48"]},
        {"channels": [8, 16, 24, 0]},
        {"channels": [[8], 16, 24, 48]},
        {"layers": [1, 1, 1, True]},
        {"stem_width": [32]},
        {"stem_width": 32.0},
        {"stem_width": {"a": 1}},
        ["channels"],
        None,
    ],
    ids=str,
)
def test_trunk_options_are_known_sizes_and_nothing_else(options: object) -> None:
    values = model_config("hyperclip_micro").to_dict()
    values["image"]["trunk_options"] = options
    with pytest.raises(ValueError, match="trunk_options="):
        HyperClipConfig.from_dict(values)


@pytest.mark.parametrize(
    ("trunk", "options", "timms_answer"),
    [
        ("tinynet_e", {"stem_width": 8}, "unexpected keyword argument 'stem_width'"),
        ("test_resnet", {"channels": [8, 16, 24]}, "has no attribute 'layer4'"),
        ("test_resnet", {"layers": [1]}, "division by zero"),
    ],
)
def test_options_that_a_trunk_cannot_take_are_named(trunk: str, options: dict[str, Any], timms_answer: str) -> None:
    config = ImageEncoderConfig(trunk=trunk, image_size=32, embed_dim=8, trunk_options=options)
    with pytest.raises(ValueError, match=f"timm cannot build {trunk} with trunk_options=.*: .*{timms_answer}"):
        ImageEncoder(config)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'hyperclip_b9'; available: hyperclip_b0, .*siglip_test"):
        model_config("hyperclip_b9")


@pytest.mark.parametrize(
    ("section", "required"), [(None, "text"), ("image", "trunk"), ("text", "width"), ("hypernetwork", "bottleneck")]
)
def test_unknown_and_missing_keys_are_refused(section: str | None, required: str) -> None:
    values = hyperclip_test().to_dict()
    part = values if section is None else values[section]
    part["colour"] = 1
    with pytest.raises(ValueError, match=r"not a model configuration: .*colour"):
        HyperClipConfig.from_dict(values)
    del part["colour"]
    del part[required]
    with pytest.raises(ValueError, match=f"not a model configuration: .*{required}"):
        HyperClipConfig.from_dict(values)


def test_encoders_that_do_not_meet_are_refused() -> None:
    config = hyperclip_test()
    with pytest.raises(ValueError, match="image embed_dim 16 differs from text embed_dim 32"):
        HyperClip(replace(config, image=replace(config.image, embed_dim=16)))
    with pytest.raises(ValueError, match="width 32 is not a multiple of heads 5"):
        HyperClip(replace(config, text=replace(config.text, heads=5)))
