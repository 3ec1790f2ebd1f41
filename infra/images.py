"""The only decoder in the project: JPEG, PNG and WebP, header first, bounded before anything is allocated.

The download's resizer alone has a decoder of its own, for what `probe` has admitted.

`probe` reads the true format and size from the bytes; `decode` gives pixels.  Everything that is not one of the three formats,
or claims more pixels than allowed, is refused before decompression.  Animated pictures give their first frame.  Pictures and
their sizes are upright: the EXIF orientation that a camera wrote is applied here, so that training, evaluation and serving all
see the same.
"""

import io
import itertools
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from infra.errors import BadInputError

ImageFormat = Literal["jpeg", "png", "webp"]
SUFFIXES: dict[ImageFormat, str] = {"jpeg": "jpg", "png": "png", "webp": "webp"}
MAX_PIXELS = 64_000_000
MAX_SCANS = 500
"""Of one JPEG, as in TurboJPEG's own TJFLAG_LIMITSCANS; encoders write 10 or so."""
MAX_SCANS_OF_LARGEST = 32
"""Of a JPEG of as many pixels as are allowed: each scan goes over them all again, though it may be 14 bytes long."""

# MPO is a JPEG with further pictures behind the first, as phones write it; Pillow finds it while opening a JPEG
_PILLOW_FORMATS: dict[str, ImageFormat] = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp"}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_ROWS_AT_ONCE = 256
# within a scan 0xFF is followed by 0, by a restart marker (0xD0 to 0xD7) or, at its end, by one of these; others have no use
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1
_MAX_SEGMENTS = 10_000
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# what Pillow warns of comes from strangers, who could fill a log with it; our own bounds are checked by `probe`.  Once for the
# process, as `warnings.catch_warnings` is not for threads
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(BadInputError):
    """Bytes that are not a picture we accept.  `reason` is a stable word for reports; the message is for people."""

    def __init__(self, reason: Literal["not_an_image", "too_many_pixels", "truncated"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ImageInfo(NamedTuple):
    format: ImageFormat
    width: int
    """Upright, as `decode` gives it."""
    height: int


def probe(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """True format and size, without decoding.

    Raises:
        ImageError: not JPEG, PNG or WebP, or more pixels than `max_pixels`, be it scan after scan over the same ones.
    """
    if canvas := _webp_canvas(data):  # libwebp reserves the whole canvas while opening, so this one is asked before Pillow is
        _check_pixels(*canvas, max_pixels=max_pixels)
    if jpeg := _jpeg_header(data, max_pixels=max_pixels):
        info = _upright_info("jpeg", jpeg.width, jpeg.height, jpeg.orientation, max_pixels=max_pixels)
    else:
        image = _open(data, max_pixels=max_pixels)
        info = _pillow_info(image, _orientation(image), max_pixels=max_pixels)
    _check_scans(data, info.width * info.height, max_pixels=max_pixels)
    return info


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """Pixels as (H, W, 3) uint8 RGB, or (H, W, 4) uint8 RGBA where the picture has transparency; upright.

    Args:
        at_least: (height, width) that are enough: a JPEG is decoded at 1/2, 3/8, 1/4 or 1/8 of its size where that is still so
            large, which costs about half.  Other formats have one size.

    Raises:
        ImageError: as `probe`, or the picture ends early or is damaged.
    """
    jpeg = _jpeg_header(data, max_pixels=max_pixels)
    if jpeg is None or jpeg.colorspace == "CMYK":  # the one kind of JPEG that simplejpeg cannot turn to RGB
        return _decode_with_pillow(data, max_pixels=max_pixels)
    _check_pixels(jpeg.width, jpeg.height, max_pixels=max_pixels)
    _check_scans(data, jpeg.width * jpeg.height, max_pixels=max_pixels)
    height, width = at_least or (0, 0)  # 0 asks for the whole size
    if jpeg.orientation in _SIDEWAYS:
        height, width = width, height
    try:
        # scales between 1/2 and 1 take longer than the whole, in libjpeg-turbo
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=height, min_width=width, min_factor=2)
    except ValueError as error:
        raise ImageError("truncated", f"jpeg picture is damaged or ends early: {error}") from error
    return _turned(pixels, jpeg.orientation)


def _decode_with_pillow(data: bytes, *, max_pixels: int) -> np.ndarray:
    if canvas := _webp_canvas(data):
        _check_pixels(*canvas, max_pixels=max_pixels)
    image = _open(data, max_pixels=max_pixels)
    orientation = _orientation(image)
    info = _pillow_info(image, orientation, max_pixels=max_pixels)
    _check_scans(data, info.width * info.height, max_pixels=max_pixels)
    try:
        image.load()
        if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it to white
            grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
            return _turned(np.stack([grey] * 3, axis=2), orientation)
        # a copy, which is writable
        return _turned(np.array(image.convert("RGBA" if image.has_transparency_data else "RGB")), orientation)
    except MemoryError:  # says nothing of the picture
        raise
    except Exception as error:  # Pillow raises whatever it stumbles over: of a palette that is not there, an AssertionError
        says = f": {error}" if str(error) else ""
        raise ImageError("truncated", f"{info.format} picture is damaged or ends early{says}") from error


def decode_rgb(data: bytes, *, background: tuple[int, int, int] = (255, 255, 255), max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels as (H, W, 3) uint8 RGB, transparency laid over `background`."""
    return flatten(decode(data, max_pixels=max_pixels), background=background)


def flatten(pixels: np.ndarray, *, background: tuple[int, int, int]) -> np.ndarray:
    """(H, W, 3 or 4) uint8 -> (H, W, 3) uint8, transparency laid over `background`."""
    if pixels.shape[2] == 3:
        return pixels
    flat = np.empty((*pixels.shape[:2], 3), dtype=np.uint8)
    for start in range(0, len(pixels), _ROWS_AT_ONCE):  # in 16 bits the whole would take four times the picture
        rows = slice(start, start + _ROWS_AT_ONCE)
        alpha = pixels[rows, :, 3].astype(np.uint16)
        through = 255 - alpha
        for channel, ground in enumerate(background):  # one at a time: twice as fast as three of every four bytes
            mixed = pixels[rows, :, channel] * alpha
            mixed += through * np.uint16(ground)
            mixed += 128  # these three lines divide by 255 and round, and stay within 16 bits
            mixed += mixed >> 8
            mixed >>= 8
            flat[rows, :, channel] = mixed
    return flat


class _JpegHeader(NamedTuple):
    height: int
    width: int
    """As stored."""
    colorspace: str
    orientation: int


def _jpeg_header(data: bytes, *, max_pixels: int) -> _JpegHeader | None:
    """None where it is no JPEG, or one whose header is damaged."""
    if not data.startswith(_MAGIC[0]):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    orientation = _orientation(_open(data, max_pixels=max_pixels)) if _has_app1(data) else 1
    return _JpegHeader(height, width, colorspace, orientation)


def _has_app1(data: bytes) -> bool:
    """Whether there is a segment that may hold EXIF or XMP; Pillow is 20 times slower to ask."""
    header = itertools.takewhile(lambda marker: marker != _SCAN, itertools.islice(_markers(data), _MAX_SEGMENTS))
    return any(marker == _APP1 for marker in header)


def _markers(data: bytes) -> Iterator[int]:
    """Of the segments of a JPEG, as libjpeg finds them: fill bytes are passed over, what follows the picture is not read."""
    start = 2
    while found := _JPEG_MARKER.search(data, start):
        marker = found[1][0]
        if marker == _END:
            return
        yield marker
        start = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))


def _check_scans(data: bytes, num_pixels: int, *, max_pixels: int) -> None:
    """Refuse a JPEG that takes far longer to decode than its pixels say."""
    if not data.startswith(_MAGIC[0]):
        return
    allowed = min(MAX_SCANS, MAX_SCANS_OF_LARGEST * max_pixels // max(1, num_pixels))
    if data.count(b"\xff\xda") <= allowed:
        return
    # some may lie behind the picture, in the video that phones put there: now only those of the picture are counted
    num_scans = 0
    for num_segments, marker in enumerate(_markers(data), start=1):
        num_scans += marker == _SCAN
        if num_scans > allowed or num_segments > _MAX_SEGMENTS:
            found = f"more than {allowed} scans over its {num_pixels:,} pixels, or {_MAX_SEGMENTS:,} segments"
            raise ImageError("too_many_pixels", f"jpeg picture has {found}")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 is upright, and what damaged or absent EXIF counts as."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the picture to look for EXIF behind it
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # whatever Pillow stumbles over
        return 1
    return found if found in range(1, 9) else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as stored -> upright."""
    if orientation in _SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _pillow_info(image: Image.Image, orientation: int, *, max_pixels: int) -> ImageInfo:
    return _upright_info(_PILLOW_FORMATS[str(image.format)], image.width, image.height, orientation, max_pixels=max_pixels)


def _upright_info(file_format: ImageFormat, width: int, height: int, orientation: int, *, max_pixels: int) -> ImageInfo:
    _check_pixels(width, height, max_pixels=max_pixels)
    return ImageInfo(file_format, height, width) if orientation in _SIDEWAYS else ImageInfo(file_format, width, height)


def _check_pixels(width: int, height: int, *, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError("too_many_pixels", f"picture is {width} x {height} pixels, more than the {max_pixels:,} allowed")


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """(width, height) that a WebP header claims; None where there is no such header."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _open(data: bytes, *, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"])
    except Image.DecompressionBombError as error:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))  # Pillow refuses so many before it tells the size
        raise ImageError("too_many_pixels", f"picture has more than the {limit:,} pixels allowed") from error
    except MemoryError:
        raise
    except Exception as error:  # whatever Pillow stumbles over
        if data.startswith(_MAGIC) or _webp_canvas(data):
            raise ImageError("truncated", f"picture of {len(data):,} bytes is damaged or ends early") from error
        raise ImageError("not_an_image", f"{len(data):,} bytes are no JPEG, PNG or WebP picture{_beginning(data)}") from error
    return image


def _beginning(data: bytes) -> str:
    """The first bytes for people: as text where they begin with some ("GIF89a", "<html>"), else in hex."""
    text = re.match(rb"[ -~]{4,12}", data)
    found = repr(text[0].decode("ascii")) if text else f"{data[:12].hex(' ')} (hex)"
    return f"; they begin with {found}" if data else ""
