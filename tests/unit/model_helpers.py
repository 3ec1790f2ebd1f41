"""Tiny models for tests, with everything set off its starting value so that mistakes show."""

import io
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from training.bundle import Bundle, load_bundle, save_bundle
from training.model.generated_norm import GeneratedBatchNorm2d, GeneratedNorm
from training.model.hyperclip import HyperClip, HyperClipConfig
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig, Kind
from training.model.registry import hyperclip_test
from training.preprocess import PreprocessConfig

LABELS = ["cat", "dog", "großer Käse", "a red bicycle"]


KINDS: list[tuple[Kind, ...]] = [*((kind,) for kind in get_args(Kind)), get_args(Kind)]
"""Each kind of generated parameters alone, and all together."""


def config_with(
    trunk: str = "test_efficientnet",
    image_size: int = 32,
    generates: tuple[Kind, ...] = ("norm",),
    basis: int | None = None,
    *,
    zero_mean: bool = False,
) -> HyperClipConfig:
    config = hyperclip_test()
    assert config.hypernetwork is not None
    return replace(
        config,
        image=replace(config.image, trunk=trunk, image_size=image_size, generates=generates),
        hypernetwork=replace(config.hypernetwork, basis=basis, zero_mean=zero_mean),
    )


def trained_like(config: HyperClipConfig, *, seed: int = 0) -> HyperClip:
    """A model as after training: a hypernetwork that says something, norms and statistics off their start.  Eval mode."""
    torch.manual_seed(seed)
    model = HyperClip(config)
    if model.hypernetwork is not None:
        nn.init.normal_(model.hypernetwork.output.weight, std=0.3 if model.hypernetwork.mix else 0.05)
        if config.hypernetwork and config.hypernetwork.zero_mean:
            nn.init.normal_(model.hypernetwork.code_mean, std=0.1)
    unsettle(model.image_encoder)
    return model.eval().requires_grad_(False)


def unsettle(encoder: ImageEncoder) -> None:
    for norm in encoder.norms.values():
        unsettle_norm(norm)
    for name, parameter in encoder.named_parameters():
        if name.endswith(".gamma"):  # ConvNeXt's layer scale starts at 1e-6, which hides what its convolutions do
            nn.init.constant_(parameter, 0.5)


@torch.no_grad()
def unsettle_norm(norm: GeneratedNorm) -> None:
    norm.weight.normal_(1, 0.2)
    norm.bias.normal_(std=0.2)
    if isinstance(norm, GeneratedBatchNorm2d):
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2)


def image_encoder(trunk: str, image_size: int = 32, *, seed: int = 0, generates: tuple[Kind, ...] = ("norm",)) -> ImageEncoder:
    """An encoder as after training, in eval mode."""
    torch.manual_seed(seed)
    encoder = ImageEncoder(ImageEncoderConfig(trunk=trunk, image_size=image_size, embed_dim=16, generates=generates))
    unsettle(encoder)
    return encoder.eval().requires_grad_(False)


def make_bundle(folder: Path, config: HyperClipConfig | None = None, *, seed: int = 0) -> Bundle:
    """Save and load a tiny model."""
    config = config or hyperclip_test()
    save_bundle(
        folder,
        trained_like(config, seed=seed),
        preprocess=PreprocessConfig(image_size=config.image.image_size),
        templates=["{}", "a photo of a {}"],
        model_card="# a test model",
        metrics={"accuracy": 0.5},
    )
    return load_bundle(folder)


def random_images(count: int, size: int = 32, *, seed: int = 0) -> Tensor:
    """(count, 3, size, size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def picture_bytes(width: int, height: int, *, mode: str = "RGB", seed: int = 0, encoding: str = "PNG") -> bytes:
    """An encoded picture of smooth random colours."""
    channels = {"RGB": 3, "RGBA": 4}[mode]
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    picture = Image.fromarray(coarse, mode).resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, encoding)
    return buffer.getvalue()
