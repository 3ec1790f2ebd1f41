"""Random variations of a training picture.  The generator is given, so a sample's picture depends on its position alone.

Resampling and colour are integer arithmetic in whole rows: together they take less than the decoder does.
Shapes: H, W decoded picture, S side of the result.
"""

import numpy as np
import torch
import torch.nn.functional as F

from infra import images
from training.config import AugmentConfig

Box = tuple[float, float, float, float]
"""left, top, right, bottom."""

GAIN_BITS = 6
"""Fixed point of the colour gains: 255 times the largest, 2.5, still fits 16 bits."""


def augmented(picture: bytes, config: AugmentConfig, *, out: np.ndarray, rng: np.random.Generator) -> None:
    """JPEG, PNG or WebP bytes -> background, random crop, colour, written to `out`.

    The crop is drawn before decoding, so that a large JPEG is decoded no larger than the crop needs.

    Args:
        out: (S, S, 3) uint8, contiguous; undefined where this raises.

    Raises:
        infra.images.ImageError: not such a picture, or damaged.
    """
    side = len(out)
    info = images.probe(picture)
    left, top, right, bottom = _random_crop(info.width, info.height, config.min_scale, rng)
    enough = (int(info.height * side / (bottom - top)) + 1, int(info.width * side / (right - left)) + 1)
    pixels = images.decode(picture, at_least=enough)
    background = (255, 255, 255)
    if config.random_background and pixels.shape[2] == 4:
        red, green, blue = rng.integers(0, 256, size=3).tolist()
        background = (red, green, blue)
    across, down = pixels.shape[1] / info.width, pixels.shape[0] / info.height
    inside = _inside(pixels, (left * across, top * down, right * across, bottom * down))
    resized = _resized(images.flatten(inside, background=background), side=side)
    if config.colour_jitter:
        gain = 1 + config.colour_jitter * rng.uniform(-1, 1) + config.colour_jitter / 2 * rng.uniform(-1, 1, size=3)
        out[:] = brightened(resized, gain)
    else:
        out[:] = resized
    if config.grayscale_share and rng.random() < config.grayscale_share:
        out[:] = grayscale(out, high_contrast=bool(rng.random() < 0.5))


def _random_crop(width: int, height: int, min_scale: float, rng: np.random.Generator) -> Box:
    """A box with a random share of the area and an aspect ratio within 3:4 and 4:3 of the picture's square."""
    area = width * height * rng.uniform(min_scale, 1)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    crop_width = min(width, (area * aspect) ** 0.5)
    crop_height = min(height, (area / aspect) ** 0.5)
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height


def _inside(pixels: np.ndarray, box: Box) -> np.ndarray:
    """(H, W, C) -> the whole pixels nearest to the box, at least one each way; a view."""
    left, top = min(round(box[0]), pixels.shape[1] - 1), min(round(box[1]), pixels.shape[0] - 1)
    return pixels[top : max(round(box[3]), top + 1), left : max(round(box[2]), left + 1)]


def _resized(pixels: np.ndarray, *, side: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (S, S, 3) uint8, bilinear with antialiasing.

    Within 1 of Pillow's and five times as fast, the same on every processor: integer arithmetic in both.
    """
    rows = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # (1, 3, H, W), still channels last in memory
    return F.interpolate(rows, (side, side), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def grayscale(pixels: np.ndarray, *, high_contrast: bool) -> np.ndarray:
    """(S, S, 3) uint8 -> (S, S, 1) uint8: the mean of the channels, at most two and a half times as far from its mean."""
    gray = pixels.sum(axis=2, keepdims=True, dtype=np.int32) // 3
    if high_contrast:
        middle = int(gray.sum()) // gray.size
        gray = (middle + (gray - middle) * 5 // 2).clip(0, 255)
    return gray.astype(np.uint8)


def brightened(pixels: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """(S, S, 3) uint8 -> (S, S, 3) uint16 up to 255: each channel times its gain, not below 0, in steps of 1 / 64."""
    side = len(pixels)
    gains = np.tile(np.rint(gain.clip(0) * (1 << GAIN_BITS)).astype(np.uint16), side)
    rows = pixels.reshape(side, -1).astype(np.uint16)  # whole rows: arithmetic along an axis of 3 does not vectorize
    rows *= gains
    rows >>= GAIN_BITS
    np.minimum(rows, np.full_like(gains, 255), out=rows)  # a bound as wide as the row: numpy is slow with a single number
    return rows.reshape(pixels.shape)
