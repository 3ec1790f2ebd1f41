"""Random variations of a training picture.  The generator is given, so a sample's picture depends on its position alone."""

import numpy as np
from PIL import Image

from infra import images
from training.config import AugmentConfig


def augment(pixels: np.ndarray, config: AugmentConfig, *, side: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3 or 4) uint8 -> (side, side, 3) uint8: background, random crop, colour."""
    background = (255, 255, 255)
    if config.random_background and pixels.shape[2] == 4:
        red, green, blue = rng.integers(0, 256, size=3).tolist()
        background = (red, green, blue)
    pixels = images.flatten(pixels, background=background)
    box = _random_crop(pixels.shape[1], pixels.shape[0], config.min_scale, rng)
    pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, box=box))
    if config.colour_jitter:
        gain = 1 + config.colour_jitter * rng.uniform(-1, 1) + config.colour_jitter / 2 * rng.uniform(-1, 1, size=3)
        pixels = np.clip(pixels * gain.astype(np.float32), 0, 255).astype(np.uint8)
    return pixels


def _random_crop(width: int, height: int, min_scale: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box with a random share of the area and an aspect ratio within 3:4 and 4:3 of the picture's square."""
    area = width * height * rng.uniform(min_scale, 1)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    crop_width = min(width, (area * aspect) ** 0.5)
    crop_height = min(height, (area / aspect) ** 0.5)
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height
