"""From the bytes of a picture to the input of the image encoder, the same in evaluation, serving and on a device."""

import numpy as np
from PIL import Image

from infra import images
from infra.config import StrictModel


class PreprocessConfig(StrictModel):
    """Everything a device needs to repeat it: resize the shorter side, crop the centre, normalize."""

    image_size: int
    """Side of the square input in pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    background: tuple[int, int, int] = (255, 255, 255)
    """What shows through transparency."""


def preprocess(data: bytes, config: PreprocessConfig, *, max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """JPEG, PNG or WebP bytes -> (3, S, S) float32.

    Raises:
        infra.images.ImageError: not such a picture, damaged, or larger than `max_pixels`.
    """
    return normalize(square_pixels(data, config, max_pixels=max_pixels), config)


def square_pixels(data: bytes, config: PreprocessConfig, *, max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """JPEG, PNG or WebP bytes -> (S, S, 3) uint8: all but `normalize`, and a quarter of the memory.

    Raises:
        infra.images.ImageError: as `preprocess`.
    """
    pixels = images.decode_rgb(data, background=config.background, max_pixels=max_pixels)
    return centre_square(pixels, config.image_size)


def centre_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (side, side, 3) uint8: the central square, resampled once (bicubic, antialiased)."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC, box=box))


def normalize(pixels: np.ndarray, config: PreprocessConfig) -> np.ndarray:
    """(S, S, 3) uint8 -> (3, S, S) float32."""
    mean = np.asarray(config.mean, dtype=np.float32)
    std = np.asarray(config.std, dtype=np.float32)
    scaled = (pixels.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
