"""What `fuzz` does to pictures: to their bytes, whatever they mean, and to the parts that their formats have."""

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

MAX_BYTES = 2**20
"""Of a picture; what repeats makes it larger is cut off."""
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
SCAN = b"\xff\xda"

Mutation = Callable[[bytes, random.Random], bytes]
Segments = list[tuple[bytes, bytes]]
"""Name and content of what a file consists of."""


# ---- bytes, whatever they mean ----------------------------------------------------------------------------------------


def _flip(data: bytes, rng: random.Random) -> bytes:
    """Some bits, of the header more often than of the rest."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64)) if changed else 0):
        changed[rng.randrange(min(len(changed), rng.choice((64, 1024, len(changed)))))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _edge(data: bytes, rng: random.Random) -> bytes:
    """A number at the edge of its range, somewhere."""
    place = rng.randrange(min(len(data), rng.choice((64, len(data)))) or 1)
    size = rng.choice((1, 2, 4))
    value = rng.choice(EDGES) & (256**size - 1)
    return data[:place] + value.to_bytes(size, rng.choice(("big", "little"))) + data[place + size :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _block(data: bytes, rng: random.Random) -> bytes:
    """A block is gone, there twice, or something else."""
    start, stop = sorted(rng.choices(range(len(data) + 1), k=2))
    return (
        data[:start] + rng.choice((b"", data[start:stop] * 2, rng.randbytes(stop - start), bytes(stop - start))) + data[stop:]
    )


def _padded(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((rng.randbytes(64), bytes(100_000), data, b"PK\x03\x04" + rng.randbytes(100)))


BYTE_MUTATIONS: dict[str, Mutation] = {"flip": _flip, "edge": _edge, "cut": _cut, "block": _block, "padded": _padded}


# ---- JPEG -------------------------------------------------------------------------------------------------------------


def _jpeg_segments(data: bytes) -> tuple[Segments, bytes]:
    """Segments up to the first scan, and the rest."""
    found, place = [], 2
    while data[place : place + 1] == b"\xff" and data[place : place + 2] != SCAN:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if length < 2:
            break
        found.append((data[place : place + 2], data[place + 4 : place + 2 + length]))
        place += 2 + length
    return found, data[place:]


def _from_segments(segments: Segments, rest: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(name + struct.pack(">H", min(len(body) + 2, 0xFFFF)) + body for name, body in segments) + rest


def _jpeg_segment(data: bytes, rng: random.Random) -> bytes:
    segments, rest = _jpeg_segments(data)
    return _from_segments(_shuffled(segments, rng), rest)


def _jpeg_frame(data: bytes, rng: random.Random) -> bytes:
    """Depth, size, components and their sampling, as the frame header has them."""
    segments, rest = _jpeg_segments(data)
    for number, (name, body) in enumerate(segments):
        if 0xC0 <= name[1] <= 0xCF and name[1] not in (0xC4, 0xC8, 0xCC) and len(body) > 6:
            size = struct.pack(">HH", rng.choice((0, 1, 60, 65_500)), rng.choice((0, 1, 60, 600, 65_500)))
            changed = rng.choice(
                (
                    body[:1] + size + body[5:],
                    bytes([rng.choice((2, 12, 16))]) + body[1:],
                    body[:5] + bytes([rng.randrange(256)]) + body[6:],
                    body[:6] + bytes(rng.choice((0x11, 0x22, 0x44, 0xFF, byte)) for byte in body[6:]),
                )
            )
            kind = bytes([0xFF, rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, name[1], name[1], name[1]))])
            segments[number] = (kind, changed)
    return _from_segments(segments, rest)


def _jpeg_scans(data: bytes, rng: random.Random) -> bytes:
    """The same scan again and again, or scans without content."""
    start = data.find(SCAN)
    scan = data[start:-2]
    if rng.random() < 0.5:
        scan = SCAN + b"\0\x08\x01\x01\0" + bytes([rng.randrange(64), rng.randrange(64), rng.randrange(256)])
    return data[:-2] + scan * min(rng.choice((1, 10, 100, 600)), MAX_BYTES // max(1, len(scan))) + data[-2:]


def _jpeg_metadata(data: bytes, rng: random.Random) -> bytes:
    segments, rest = _jpeg_segments(data)
    segments[:0] = [
        rng.choice(
            (
                (b"\xff\xe1", b"Exif\0\0" + _exif(rng)),
                (b"\xff\xe1", b"http://ns.adobe.com/xap/1.0/\0" + b"<x:xmpmeta " * rng.choice((1, 5000))),
                (b"\xff\xe2", b"ICC_PROFILE\0" + rng.randbytes(2) + rng.randbytes(500)),
                (b"\xff\xe2", b"MPF\0" + _exif(rng)),
                (b"\xff\xed", b"Photoshop 3.0\08BIM" + rng.randbytes(60)),
                (b"\xff\xee", b"Adobe\0" + rng.randbytes(6)),
                (b"\xff\xfe", rng.randbytes(rng.choice((0, 60_000)))),
                (b"\xff\xdd", rng.randbytes(2)),
            )
        )
    ] * rng.choice((1, 1, 20))
    return _from_segments(segments, rest)


def _exif(rng: random.Random) -> bytes:
    """Tags whose counts and addresses lead astray: out of the block, to themselves, to huge values."""
    order, head = rng.choice(((">", b"MM\0*"), ("<", b"II*\0")))
    count = rng.choice((0, 1, 20, 65_535))
    tags = [0x0112, 0x8769, 0x8825, 0x014A, 0x010F, 0x9286]
    entries = [
        struct.pack(
            f"{order}HHII", rng.choice(tags), rng.randrange(14), rng.choice(EDGES), rng.choice((8, 0, 0xFFFF, 0xFFFFFFFF))
        )
        for _ in range(min(count, 30))
    ]
    return head + struct.pack(f"{order}IH", 8, count) + b"".join(entries) + struct.pack(f"{order}I", rng.choice((0, 8, 2**31)))


def _shuffled(parts: Segments, rng: random.Random) -> Segments:
    """One part is gone, there many times, empty, elsewhere, or has a changed content."""
    if not parts:
        return parts
    place = rng.randrange(len(parts))
    name, body = parts[place]
    some = rng.choice(
        (
            [],
            [(name, body)] * rng.choice((2, 50)),
            [(name, b"")],
            [(name, _flip(body, rng))],
            [(name, body[: len(body) // 2])],
            [(name, body + rng.randbytes(20))],
            [parts[rng.randrange(len(parts))], (name, body)],
        )
    )
    return [*parts[:place], *some, *parts[place + 1 :]]


# ---- PNG --------------------------------------------------------------------------------------------------------------


def _chunks(data: bytes) -> Segments:
    found, place = [], 8
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        found.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def png_of(chunks: Segments) -> bytes:
    parts = [struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks]
    return PNG_MAGIC + b"".join(parts)


@cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count))


def _png_chunk(data: bytes, rng: random.Random) -> bytes:
    return png_of(_shuffled(_chunks(data), rng))


def _png_header(data: bytes, rng: random.Random) -> bytes:
    """Another size, depth or colour type, with the right checksum."""
    chunks = _chunks(data)
    if chunks and len(chunks[0][1]) == 13:
        width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
        sizes = (0, 1, 6000, 100_000, 2**31 - 1, 2**32 - 1)
        width, height = rng.choice((width, rng.choice(sizes))), rng.choice((height, rng.choice(sizes)))
        rest = [rng.choice((value, value, rng.randrange(20))) for value in rest]
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", width, height, *rest))
    return png_of(chunks)


def _png_extra(data: bytes, rng: random.Random) -> bytes:
    """A further chunk behind the header."""
    chunks = _chunks(data)
    many = _zeros(rng.choice((10, 2**20, 2**24)))
    extra = rng.choice(
        (
            (b"acTL", struct.pack(">II", rng.choice(EDGES), 0)),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, *rng.choices(EDGES, k=4), 1, 1, 0, 0)),
            (b"fdAT", bytes(4) + many),
            (b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 300)))),
            (b"PLTE", rng.randbytes(rng.choice((0, 1, 3, 768, 900)))),
            (b"gAMA", rng.randbytes(4)),
            (b"eXIf", _exif(rng)),
            (b"iCCP", b"p\0\0" + many),
            (b"zTXt", b"t\0\0" + many),
            (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + many),
            (rng.choice((b"CgBI", b"IDOT", b"\0\0\0\0", b"JDAT", b"IEND")), rng.randbytes(9)),
        )
    )
    return png_of([*chunks[:1], *[extra] * rng.choice((1, 1, 100 if len(extra[1]) < 1000 else 2)), *chunks[1:]])


def _png_data(data: bytes, rng: random.Random) -> bytes:
    """Pixels that are too many, too few, of no filter, or in no zlib stream."""
    noise = rng.randbytes(rng.choice((0, 1000)))
    zeros = _zeros(rng.choice((10, 10_000, 2**22)))
    stream = rng.choice((zeros, zeros[:-4], zlib.compress(noise), noise))
    return png_of([(name, stream if name == b"IDAT" else body) for name, body in _chunks(data)])


# ---- WebP -------------------------------------------------------------------------------------------------------------


def _webp_chunks(data: bytes) -> Segments:
    found, place = [], 12
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        found.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    return found


def _from_webp_chunks(chunks: Segments, *, declared: int | None = None) -> bytes:
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(part)) + part + bytes(len(part) % 2) for name, part in chunks)
    return b"RIFF" + struct.pack("<I", len(body) if declared is None else declared) + body


def _webp_chunk(data: bytes, rng: random.Random) -> bytes:
    return _from_webp_chunks(_shuffled(_webp_chunks(data), rng))


def _webp_length(data: bytes, rng: random.Random) -> bytes:
    return _from_webp_chunks(_webp_chunks(data), declared=rng.choice(EDGES))


def _webp_canvas(data: bytes, rng: random.Random) -> bytes:
    """An extended header: its flags promise what is or is not there, its canvas is of any size."""
    chunks = [chunk for chunk in _webp_chunks(data) if chunk[0] != b"VP8X"]
    sides = [rng.choice((0, 47, 5000, 2**24 - 1)).to_bytes(3, "little") for _ in range(2)]
    return _from_webp_chunks([(b"VP8X", bytes([rng.randrange(256), 0, 0, 0]) + b"".join(sides)), *chunks])


def _webp_extra(data: bytes, rng: random.Random) -> bytes:
    chunks = _webp_chunks(data)
    extra = rng.choice(
        (
            (b"ANIM", rng.randbytes(6)),
            (b"ANMF", rng.randbytes(16) + data[12:]),
            (b"ALPH", rng.randbytes(rng.choice((1, 500)))),
            (b"EXIF", _exif(rng)),
            (b"ICCP", rng.randbytes(500)),
            (b"XMP ", b"<" * 20_000),
        )
    )
    return _from_webp_chunks([*chunks[:1], *[extra] * rng.choice((1, 1, 200)), *chunks[1:]])


FORMAT_MUTATIONS: dict[bytes, dict[str, Mutation]] = {
    b"\xff\xd8": {
        "jpeg_segment": _jpeg_segment,
        "jpeg_frame": _jpeg_frame,
        "jpeg_scans": _jpeg_scans,
        "jpeg_metadata": _jpeg_metadata,
    },
    PNG_MAGIC[:2]: {"png_chunk": _png_chunk, "png_header": _png_header, "png_extra": _png_extra, "png_data": _png_data},
    b"RI": {"webp_chunk": _webp_chunk, "webp_length": _webp_length, "webp_canvas": _webp_canvas, "webp_extra": _webp_extra},
}
