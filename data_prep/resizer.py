"""Pictures resized and encoded as img2dataset's `Resizer` does it, byte for byte, without what it does beside that.

Its own builds and validates an Albumentations transform and opens six file descriptors for each picture.  Two of its modes are
here: `keep_ratio` for pictures that are larger, and storing what was received.
"""

import contextlib
import io
import os
from collections.abc import Iterator

import cv2
import numpy as np

Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]
"""Picture, width, height, original width and height, error; as img2dataset's Downloader wants it."""

_JPEG_QUALITY = 95
_NOWHERE = os.open(os.devnull, os.O_WRONLY)


def store_as_received(stream: io.BytesIO, _boxes: None = None) -> Resized:
    """Nothing is decoded, so no size is known."""
    return stream.read(), None, None, None, None, None


class Resizer:
    """JPEGs whose shorter side is `shorter_side` pixels, or what it was where that is less; transparency laid over white."""

    def __init__(self, shorter_side: int) -> None:
        self._shorter_side = shorter_side
        cv2.setNumThreads(1)  # there are as many processes as cores

    def __call__(self, stream: io.BytesIO, _boxes: None = None) -> Resized:
        try:
            with _quiet_decoders():
                return self._resized(stream.getvalue())
        except Exception as error:  # OpenCV's and NumPy's own for whatever a picture provokes: it costs this one picture
            return None, None, None, None, None, str(error)

    def _resized(self, data: bytes) -> Resized:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError("Image decoding error")
        if pixels.ndim == 3 and pixels.shape[2] == 4:
            pixels = _on_white(pixels)
        height, width = original_height, original_width = pixels.shape[:2]
        if min(height, width) > self._shorter_side:
            scale = self._shorter_side / min(height, width)
            height, width = round(height * scale), round(width * scale)
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        return encoded.tobytes(), width, height, original_width, original_height, None


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 4) -> (H, W, 3) uint8."""
    alpha = pixels[:, :, 3:]
    blended = alpha / 255 * pixels[..., :3] + 255 - alpha
    return np.rint(blended.clip(min=0, max=255)).astype(np.uint8)


@contextlib.contextmanager
def _quiet_decoders() -> Iterator[None]:
    """libjpeg and libpng complain of odd pictures on standard error, past Python."""
    before = os.dup(2)
    os.dup2(_NOWHERE, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
