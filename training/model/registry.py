"""The models by name.  Each HyperCLIP has a SigLIP twin: the same encoders, no hypernetwork."""

from dataclasses import replace
from typing import get_args

from training.model.hyperclip import HyperClipConfig
from training.model.hypernetwork import HypernetworkConfig
from training.model.image_encoder import ImageEncoderConfig, Kind
from training.model.text_encoder import TextEncoderConfig


def hyperclip_test() -> HyperClipConfig:
    """Seconds on a CPU: for tests."""
    return HyperClipConfig(
        name="hyperclip_test",
        image=ImageEncoderConfig(trunk="test_efficientnet", image_size=32, embed_dim=32),
        text=TextEncoderConfig(width=32, heads=2, layers=1, embed_dim=32),
        hypernetwork=HypernetworkConfig(width=32, heads=2, layers=1, bottleneck=16),
    )


def hyperclip_quickstart() -> HyperClipConfig:
    """Minutes on two cores: for the bundled sample.

    The trunk is timm's smallest ResNet: within a few hundred steps it learns far more than the mobile networks do.
    """
    return HyperClipConfig(
        name="hyperclip_quickstart",
        image=ImageEncoderConfig(trunk="test_resnet", image_size=48, embed_dim=128),
        text=TextEncoderConfig(width=128, heads=4, layers=2, embed_dim=128),
        hypernetwork=HypernetworkConfig(width=128, heads=4, layers=2, bottleneck=64),
    )


def hyperclip_micro() -> HyperClipConfig:
    """An image encoder of 97,472 parameters: for devices where the quickstart's 385,000 are too many.

    So few parameters serve every set of names badly; what pays is to change the convolutions themselves, not the norms alone.
    """
    return _tiny("hyperclip_micro", channels=(8, 16, 24, 48))


def hyperclip_nano() -> HyperClipConfig:
    """The same with 32,376 parameters, most of them in the stem."""
    return _tiny("hyperclip_nano", channels=(4, 8, 12, 24))


def _tiny(name: str, *, channels: tuple[int, int, int, int]) -> HyperClipConfig:
    """The quickstart with a narrower trunk, of which everything is generated that can be."""
    quickstart = hyperclip_quickstart()
    image = replace(quickstart.image, trunk_options={"channels": channels}, generates=get_args(Kind))
    return replace(quickstart, name=name, image=image)


def hyperclip_b0() -> HyperClipConfig:
    """The paper's scale: EfficientNet-B0 and the CLIP text tower."""
    return HyperClipConfig(
        name="hyperclip_b0",
        image=ImageEncoderConfig(trunk="efficientnet_b0", image_size=224, embed_dim=512),
        text=TextEncoderConfig(width=768, heads=8, layers=12, embed_dim=512),
        hypernetwork=HypernetworkConfig(width=512, heads=8, layers=4, bottleneck=128),
    )


def siglip_twin(config: HyperClipConfig) -> HyperClipConfig:
    """The matched baseline of a HyperCLIP: no hypernetwork, and none of the factors that only generated deltas need."""
    image = replace(config.image, generates=("norm",))
    return replace(config, name=config.name.replace("hyperclip", "siglip"), image=image, hypernetwork=None)


MODELS: dict[str, HyperClipConfig] = {
    config.name: config
    for hyperclip in (hyperclip_test(), hyperclip_nano(), hyperclip_micro(), hyperclip_quickstart(), hyperclip_b0())
    for config in (hyperclip, siglip_twin(hyperclip))
}


def model_config(name: str) -> HyperClipConfig:
    """The configuration of a model by name.

    Raises:
        ValueError: unknown name; the message lists those there are.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; available: {', '.join(sorted(MODELS))}")
    return MODELS[name]
