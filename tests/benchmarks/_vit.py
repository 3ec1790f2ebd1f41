"""Vision transformers as trunks of timm: of given sizes, or of about as many parameters as another encoder.

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

    Raises:
        BadInputError: the pictures do not divide into patches.
    """
    image = encoder.config
    patch = 16 if image.image_size >= SMALL else 8
    shapes = [(depth, width) for depth, width in product(DEPTHS, WIDTHS) if width % _heads(width) == 0]
    depth, width = min(shapes, key=lambda shape: abs(_num_parameters(image, patch, *shape) - num_parameters))
    return with_vit(encoder, patch=patch, width=width, depth=depth)


def with_vit(encoder: ImageEncoder, *, patch: int, width: int, depth: int) -> ImageEncoderConfig:
    """The same encoder with a ViT for a trunk, which is registered with timm under a name that says its sizes.

    Raises:
        BadInputError: the pictures do not divide into patches, or the width not into heads.
    """
    image = encoder.config
    side, heads = image.image_size, _heads(width)
    if side % patch:
        raise BadInputError(f"pictures of {side} pixels do not divide into patches of {patch}: no ViT to compare with")
    if width % heads:
        raise BadInputError(f"a width of {width} does not divide into {heads} heads")
    sizes = {"img_size": side, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
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
