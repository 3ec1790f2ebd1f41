"""The models by name.  Each HyperCLIP has a SigLIP twin: the same encoders, no hypernetwork."""

from collections.abc import Callable
from dataclasses import replace

from training.model.hyperclip import HyperClipConfig
from training.model.hypernetwork import HypernetworkConfig
from training.model.image_encoder import ImageEncoderConfig
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


MODELS: dict[str, Callable[[], HyperClipConfig]] = {
    "hyperclip_test": hyperclip_test,
    "hyperclip_quickstart": hyperclip_quickstart,
    "hyperclip_b0": hyperclip_b0,
    "siglip_test": lambda: siglip_twin(hyperclip_test()),
    "siglip_quickstart": lambda: siglip_twin(hyperclip_quickstart()),
    "siglip_b0": lambda: siglip_twin(hyperclip_b0()),
}


def model_config(name: str) -> HyperClipConfig:
    """The configuration of a model by name.

    Raises:
        ValueError: unknown name; the message lists those there are.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; available: {', '.join(sorted(MODELS))}")
    return MODELS[name]()
