"""Pictures that compress and decode like photographs, made from nothing.

Dead leaves (discs of random size that hide each other, as things do) with a texture whose amplitude falls with frequency: the
two usual models of the statistics of natural images.  At quality 85 they take about as many bytes a pixel as photographs do.
"""

import numpy as np
import simplejpeg

QUALITY = 85


def photograph(seed: int, *, width: int, height: int) -> bytes:
    """A JPEG, 4:2:0 as cameras and web sites write it."""
    rng = np.random.default_rng(seed)
    pixels = _leaves(rng, width, height) + 18 * _texture(rng, width, height)[:, :, None]
    return simplejpeg.encode_jpeg(
        np.clip(pixels, 0, 255).astype(np.uint8), quality=QUALITY, colorspace="RGB", colorsubsampling="420"
    )


def _leaves(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(H, W, 3): discs with radii of a power law, the later ones in front."""
    pixels = np.tile(rng.uniform(0, 255, 3), (height, width, 1))
    y, x = np.mgrid[:height, :width]
    radii = 4 / np.maximum(rng.uniform(size=150), 4 / max(width, height)) ** 0.7
    for radius in sorted(radii, reverse=True):
        centre_x, centre_y = rng.uniform(0, width), rng.uniform(0, height)
        pixels[(x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2] = rng.uniform(0, 255, 3)
    return pixels


def _texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(H, W), mean 0, deviation 1: noise whose amplitude is 1 / frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency, (height, width))
    return (noise - noise.mean()) / noise.std()
