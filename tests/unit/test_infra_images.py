"""The only decoder: three formats, header first, nothing allocated for a picture that is too large."""

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, ImageOps

from infra.images import ImageError, ImageInfo, decode, decode_rgb, probe


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A smooth picture, so that lossy formats stay close to it."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def webp_claiming(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("jpeg", {"quality": 95, "subsampling": 0}, 8),  # lossy: 8 of 255 is what quality 95 leaves on a smooth picture
        ("png", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("webp", {"quality": 95}, 12),  # lossy, and its colours are halved in size
    ],
)
def test_a_picture_survives_the_round_trip(name: str, options: dict[str, Any], tolerance: int) -> None:
    data = encode(picture(), name.upper(), **options)
    assert probe(data) == ImageInfo(name, 40, 32)  # type: ignore[arg-type]
    pixels = decode(data)
    assert pixels.shape == (32, 40, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert np.abs(pixels.astype(int) - np.asarray(picture()).astype(int)).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palette_become_rgb(mode: str) -> None:
    expected = np.asarray(picture(mode).convert("RGB"))
    np.testing.assert_array_equal(decode(encode(picture(mode), "PNG")), expected)


def test_transparency_is_kept_by_decode_and_laid_over_the_background_by_decode_rgb() -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 0] = 200
    pixels[0, :, 3] = [255, 128, 0]
    data = encode(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(decode(data), pixels)
    np.testing.assert_array_equal(decode_rgb(data)[0], [[200, 0, 0], [227, 127, 127], [255, 255, 255]])
    np.testing.assert_array_equal(decode_rgb(data, background=(0, 0, 0))[0], [[200, 0, 0], [100, 0, 0], [0, 0, 0]])


def test_a_cmyk_jpeg_has_the_colours_pillow_sees() -> None:
    data = encode(picture("CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(values), "PNG"))[0, :, 0], [0, 1, 128, 255])


def test_a_phones_multi_picture_jpeg_is_a_jpeg_and_gives_its_first() -> None:
    data = encode(picture(), "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert probe(data) == ImageInfo("jpeg", 40, 32)
    assert decode(data).shape == (32, 40, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_a_turned_picture_comes_upright_with_its_upright_size(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(picture(size=(400, 320)), name, exif=exif, **({"lossless": True} if name == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    pixels = decode(data)
    assert probe(data)[1:] == pixels.shape[1::-1] == expected.shape[1::-1]
    # 2 of 255: two JPEG decoders round differently
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= (2 if name == "JPEG" else 0)
    height, width = expected.shape[0] // 2, expected.shape[1] // 2
    scaled = decode(data, at_least=(height, width))
    assert scaled.shape == ((height, width, 3) if name == "JPEG" else expected.shape)


def test_damaged_exif_counts_as_none() -> None:
    data = encode(picture(), "JPEG", exif=b"Exif\0\0" + bytes(range(200)))
    assert decode(data).shape == (32, 40, 3) and probe(data) == ImageInfo("jpeg", 40, 32)


@pytest.mark.parametrize(("wanted", "expected"), [((375, 500), 8), ((189, 1), 8), ((188, 250), 4), ((90, 120), 2), ((9, 9), 1)])
def test_a_jpeg_is_decoded_no_larger_than_needed(wanted: tuple[int, int], expected: int) -> None:
    data = encode(picture(size=(500, 375)), "JPEG")
    height, width = decode(data, at_least=wanted).shape[:2]
    assert (height, width) == (-(-375 * expected // 8), -(-500 * expected // 8))  # eighths of the size


@pytest.mark.parametrize("name", ["WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], name, save_all=True, append_images=frames[1:], lossless=True)
    pixels = decode_rgb(data)
    assert pixels.shape == (8, 8, 3)
    assert (pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_picture_that_ends_early_is_truncated(name: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, name)
    with pytest.raises(ImageError) as caught:
        decode(data[: int(share * len(data))])
    assert caught.value.reason == "truncated"


def test_a_png_without_the_palette_its_pixels_point_into_is_damaged() -> None:
    whole = encode(picture().quantize(16), "PNG")
    start = whole.index(b"PLTE") - 4
    data = whole[:start] + whole[start + 12 + int.from_bytes(whole[start : start + 4], "big") :]
    assert decode(whole).shape == (32, 40, 3)
    assert probe(data) == ImageInfo("png", 40, 32)
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("owner_and_name", [(Image, "open"), (Image.Image, "getexif"), (ImageFile.ImageFile, "load")])
def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch, owner_and_name: tuple[Any, str]) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    data = encode(picture(), "PNG", exif=b"Exif\0\0" + bytes(8))
    monkeypatch.setattr(*owner_and_name, out_of_memory)
    with pytest.raises(MemoryError):
        decode(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"Not found\n", "10 bytes are no JPEG, PNG or WebP picture; they begin with 'Not found'"),
        (b"GIF89a\1\0", "; they begin with 'GIF89a'"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "; they begin with 00 00 00 0c 4a 58 4c 20 0d 0a 87 0a (hex)"),
        (b"", "0 bytes are no JPEG, PNG or WebP picture"),
    ],
    ids=["text", "gif", "binary", "empty"],
)
def test_the_message_shows_the_beginning_as_people_read_it(data: bytes, says: str) -> None:
    with pytest.raises(ImageError) as caught:
        probe(data)
    assert str(caught.value).endswith(says)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Not found\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encode(picture(), "GIF"),
        encode(picture(), "TIFF"),
        bytes(999),
    ],
    ids=["empty", "text", "svg", "gif", "tiff", "zeros"],
)
def test_everything_else_is_no_picture(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        probe(data)
    assert caught.value.reason == "not_an_image"


@pytest.mark.parametrize(
    "data",
    [png_claiming(30_000, 30_000), png_claiming(9_000, 9_000), webp_claiming(16_000, 16_000)],
    ids=["png over Pillow's bound", "png over ours only", "webp"],
)
def test_a_header_claiming_too_much_is_refused_without_allocating(data: bytes) -> None:
    tracemalloc.start()
    try:
        for read in (probe, decode):
            with pytest.raises(ImageError, match=r" more than the 1,000,000 .*allowed") as caught:
                read(data, max_pixels=1_000_000)
            assert caught.value.reason == "too_many_pixels"
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # bytes: a refusal needs the header only
    finally:
        tracemalloc.stop()


def jpeg_with_scans(num_more: int, mode: str = "RGB") -> bytes:
    """A whole JPEG with so many scans more than the encoder wrote, each of a few bytes."""
    data = encode(Image.new(mode, (40, 32)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    scan = data[start : start + 9] + b"\0" + data[start + 10 : -2]  # no refinement, so it may come any number of times
    return data[:-2] + scan * num_more + data[-2:]


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])  # one for each decoder
@pytest.mark.parametrize(("num_more", "max_pixels"), [(500, 64_000_000), (40, 40 * 32)])
def test_a_jpeg_that_goes_over_its_pixels_again_and_again_is_refused(mode: str, num_more: int, max_pixels: int) -> None:
    for read in (probe, decode):
        with pytest.raises(ImageError) as caught:
            read(jpeg_with_scans(num_more, mode), max_pixels=max_pixels)
        assert caught.value.reason == "too_many_pixels"


def test_as_many_scans_as_encoders_write_are_decoded_whatever_lies_between_and_behind() -> None:
    data = jpeg_with_scans(10)
    comment = b"\xff\xfe" + (2 + 2000).to_bytes(2, "big") + b"\xff\xda" * 1000
    video = b"\xff\xda" * 1000
    assert (decode(data[:2] + comment + data[2:] + video, max_pixels=40 * 32) == decode(data)).all()


def test_a_jpeg_of_segments_without_end_is_refused() -> None:
    data = jpeg_with_scans(0)
    with pytest.raises(ImageError, match="10,000 segments"):
        decode(data[:2] + b"\xff\xfe\x00\x04\xff\xda" * 20_000 + data[2:])


@pytest.mark.parametrize("fill", [b"\xff", b"\xff" * 7])
def test_fill_bytes_before_a_segment_are_passed_over(fill: bytes) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(picture(), "JPEG", exif=exif)
    app1 = data.index(b"\xff\xe1")
    filled = data[:app1] + fill + data[app1:]
    assert probe(filled) == probe(data) == ImageInfo("jpeg", 32, 40)
    np.testing.assert_array_equal(decode(filled), decode(data))
    upright = encode(picture(), "JPEG")
    assert probe(upright[:2] + fill + upright[2:]) == ImageInfo("jpeg", 40, 32)


def test_a_fill_byte_is_not_taken_for_a_segment_that_ends_with_the_file() -> None:
    data = encode(picture(), "JPEG")
    filled = data[:2] + b"\xff" + data[2:]  # FF D8 FF FF E0 00 10: no segment of E0 00 bytes
    for end in (b"\xff", b"\xff\xff", b"\xff\xe1", b"\xff\xe0\x00"):
        assert probe(filled.ljust(4 + 0xE000, b"\0") + end) == ImageInfo("jpeg", 40, 32)


@pytest.mark.parametrize("end", [b"\xff", b"\xff\xff", b"\xff\xe1", b"\xff\xe0\x00", b"\xff\xe0\x00\x03\xff"])
def test_a_jpeg_that_ends_within_its_header_is_refused(end: bytes) -> None:
    for read in (probe, decode):
        with pytest.raises(ImageError):
            read(encode(picture(), "JPEG")[:2] + end)


def test_the_bound_is_the_callers() -> None:
    data = encode(picture(), "PNG")
    assert probe(data, max_pixels=40 * 32).width == 40
    with pytest.raises(ImageError, match=r"40 x 32 pixels, more than the 1,279 allowed"):
        decode(data, max_pixels=40 * 32 - 1)


def test_a_webp_header_is_read_as_libwebp_reads_it() -> None:
    for options in ({"lossless": True}, {"quality": 50}, {"lossless": True, "exif": b"Exif\0\0" + bytes(20)}):
        data = encode(picture(size=(300, 17)), "WEBP", **options)
        with pytest.raises(ImageError, match="300 x 17"):
            probe(data, max_pixels=300 * 17 - 1)
        assert probe(data, max_pixels=300 * 17) == ImageInfo("webp", 300, 17)


@pytest.mark.parametrize("seed", range(5))
def test_damaged_bytes_give_pixels_or_an_image_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name in ("JPEG", "PNG", "WEBP"):
        data = np.frombuffer(encode(picture(), name), dtype=np.uint8).copy()
        data[rng.integers(0, len(data), 8)] = rng.integers(0, 255, 8)
        try:
            assert decode(data.tobytes()).dtype == np.uint8
        except ImageError as error:
            assert error.reason in ("not_an_image", "too_many_pixels", "truncated")
