"""Random variations of a training picture.  The generator is given, so a sample's picture depends on its position alone."""

import numpy as np
from PIL import Image

from infra import images
from training.config import AugmentConfig

Box = tuple[float, float, float, float]
"""left, top, right, bottom."""


def augmented(picture: bytes, config: AugmentConfig, *, side: int, rng: np.random.Generator) -> np.ndarray:
    """JPEG, PNG or WebP bytes -> (side, side, 3) uint8: background, random crop, colour.

    The crop is drawn before decoding, so that a large JPEG is decoded no larger than the crop needs.

    Raises:
        infra.images.ImageError: not such a picture, or damaged.
    """
    info = images.probe(picture)
    left, top, right, bottom = _random_crop(info.width, info.height, config.min_scale, rng)
    enough = (int(info.height * side / (bottom - top)) + 1, int(info.width * side / (right - left)) + 1)
    pixels = images.decode(picture, at_least=enough)
    background = (255, 255, 255)
    if config.random_background and pixels.shape[2] == 4:
        red, green, blue = rng.integers(0, 256, size=3).tolist()
        background = (red, green, blue)
    across, down = pixels.shape[1] / info.width, pixels.shape[0] / info.height
    image = _resized(pixels, (left * across, top * down, right * across, bottom * down), side=side, background=background)
    if config.colour_jitter:
        gain = 1 + config.colour_jitter * rng.uniform(-1, 1) + config.colour_jitter / 2 * rng.uniform(-1, 1, size=3)
        table = np.clip(np.arange(256) * gain[:, None], 0, 255).astype(np.uint8)  # (3, 256), each channel times its gain
        image = image.point(table.ravel().tolist())
    return np.asarray(image)


def _random_crop(width: int, height: int, min_scale: float, rng: np.random.Generator) -> Box:
    """A box with a random share of the area and an aspect ratio within 3:4 and 4:3 of the picture's square."""
    area = width * height * rng.uniform(min_scale, 1)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    crop_width = min(width, (area * aspect) ** 0.5)
    crop_height = min(height, (area / aspect) ** 0.5)
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height


def _resized(pixels: np.ndarray, box: Box, *, side: int, background: tuple[int, int, int]) -> Image.Image:
    """(H, W, 3 or 4) uint8 -> side x side: the box, resampled once; only what lies in it is touched."""
    left, top = int(box[0]), int(box[1])
    inside = pixels[top : int(np.ceil(box[3])), left : int(np.ceil(box[2]))]
    inside = np.ascontiguousarray(images.flatten(inside, background=background))
    height, width = inside.shape[:2]
    # rounding must not carry the box beyond the pixels
    box = (box[0] - left, box[1] - top, min(box[2] - left, width), min(box[3] - top, height))
    return Image.fromarray(inside).resize((side, side), Image.Resampling.BILINEAR, box=box)
