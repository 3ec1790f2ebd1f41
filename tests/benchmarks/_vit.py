"""A vision transformer of about as many parameters as another encoder, at the same image size, as a trunk of timm.

Shapes: S side of a picture, D embedding.
"""

from dataclasses import replace
from itertools import product
from typing import Any

from torch import nn

from infra.errors import BadInputError
from training.model.image_encoder import ImageEncoder, ImageEncoderConfig

DEPTHS = range(6, 13)
WIDTHS = range(8, 1025, 8)
SMALL = 96
"""Pixels from which on patches are 16 wide, as in ViT-Ti/16; 8 below, where 16 would leave a handful."""


def vit_like(encoder: ImageEncoder, *, num_parameters: int) -> ImageEncoderConfig:
    """An encoder with a ViT for a trunk whose depth and width bring it nearest to `num_parameters`.

    The trunk is registered with timm under a name that says its sizes.

    Raises:
        BadInputError: the pictures do not divide into patches.
    """
    image = encoder.config
    side = image.image_size
    patch = 16 if side >= SMALL else 8
    if side % patch:
        raise BadInputError(f"pictures of {side} pixels do not divide into patches of {patch}: no ViT to compare with")
    shapes = [(depth, width) for depth, width in product(DEPTHS, WIDTHS) if width % _heads(width) == 0]
    depth, width = min(shapes, key=lambda shape: abs(_num_parameters(image, patch, *shape) - num_parameters))
    sizes = {"img_size": side, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": _heads(width)}
    return replace(image, trunk=_registered(sizes), generates=("norm",), trunk_options={})


def _heads(width: int) -> int:
    """64 channels each, as usual, but two at least."""
    return max(2, width // 64)


def _num_parameters(image: ImageEncoderConfig, patch: int, depth: int, width: int) -> int:
    """Patches, class token and positions, blocks (attention, MLP four times as wide, two norms), norm, projection to D."""
    tokens = (image.image_size // patch) ** 2 + 1
    embedding = (3 * patch**2 + 1) * width + width + tokens * width
    return embedding + depth * (12 * width**2 + 13 * width) + 2 * width + width * image.embed_dim


def _registered(sizes: dict[str, int]) -> str:
    # not above: timm imports torchvision, which loads beside a CPU build of torch only once an ImageEncoder was made
    import timm
    from timm.models import VisionTransformer, register_model

    def create(pretrained: bool = False, *, num_classes: int = 0, **_: Any) -> nn.Module:
        return VisionTransformer(num_classes=num_classes, **sizes)

    create.__name__ = "vit_" + "_".join(map(str, sizes.values()))
    if not timm.is_model(create.__name__):
        register_model(create)
    return create.__name__
