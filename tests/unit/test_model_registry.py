"""Model configurations: by name, to and from plain values, refused when they make no sense."""

import json
from dataclasses import replace

import pytest

from training.model.hyperclip import HyperClip, HyperClipConfig
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
    assert twin.hypernetwork is None and (twin.image, twin.text) == (config.image, config.text)


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
