"""Ways to damage a raw tar, or to make one that no raw tar would be."""

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.unit.data_helpers import picture

BLOCK = 512
HUGE = 1 << 40


@dataclass(frozen=True)
class Member:
    name: str
    data: bytes
    type: bytes = tarfile.REGTYPE
    size: int | None = None
    """What the header claims, where that is not the length of the data."""
    linkname: str = ""
    pax: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Sample:
    key: str
    image: bytes
    record: bytes

    def members(self) -> list[Member]:
        return [Member(f"{self.key}.webp", self.image), Member(f"{self.key}.json", self.record)]


def samples(first_row: int, count: int, shard: str) -> list[Sample]:
    """Good ones."""
    return [
        Sample(
            f"{place:05d}",
            picture(first_row + place, width=40, height=40),
            json.dumps({"uid": f"{shard}/{place}", "row": first_row + place, "caption": f"thing {first_row + place}"}).encode(),
        )
        for place in range(count)
    ]


def write_tar(members: list[Member]) -> bytes:
    """A tar of these members, whatever their headers claim."""
    parts = []
    for member in members:
        info = tarfile.TarInfo(member.name)
        info.type, info.linkname, info.mtime = member.type, member.linkname, 0
        info.pax_headers = dict(member.pax)
        info.size = len(member.data) if member.size is None else member.size
        parts.append(info.tobuf(tarfile.GNU_FORMAT if not member.pax else tarfile.PAX_FORMAT))
        parts.append(member.data + bytes(-len(member.data) % BLOCK))
    return b"".join(parts) + bytes(2 * BLOCK)


def plain(found: list[Sample]) -> bytes:
    return write_tar([member for sample in found for member in sample.members()])


Damage = Callable[[list[Sample], random.Random], bytes | None]
"""Samples -> the bytes that lie there instead; None: nothing does."""


# ---- what happens to a tar that was whole: its report still tells of the whole one -------------------------------------------


def truncated(found: list[Sample], rng: random.Random) -> bytes:
    data = plain(found)
    return data[: rng.randrange(len(data))]


def bit_flipped(found: list[Sample], rng: random.Random) -> bytes:
    data = bytearray(plain(found))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def block_zeroed(found: list[Sample], rng: random.Random) -> bytes:
    data = bytearray(plain(found))
    start = rng.randrange(len(data) // BLOCK - 2) * BLOCK
    data[start : start + BLOCK] = bytes(BLOCK)
    return bytes(data)


def appended(found: list[Sample], rng: random.Random) -> bytes:
    return plain(found) + rng.randbytes(BLOCK)


def swapped(found: list[Sample], rng: random.Random) -> bytes:
    return plain([replace(sample, image=found[0].image) for sample in found])


def missing(found: list[Sample], rng: random.Random) -> None:
    return None


CHANGED: tuple[Damage, ...] = (truncated, bit_flipped, block_zeroed, appended, swapped, missing)


# ---- tars that were made so: their report agrees with them -------------------------------------------------------------------


def bad_header(found: list[Sample], rng: random.Random) -> bytes:
    data, members = bytearray(plain(found)), [member for sample in found for member in sample.members()]
    before = rng.randrange(len(members))
    start = len(write_tar(members[:before])) - 2 * BLOCK
    data[start : start + BLOCK] = rng.randbytes(BLOCK)
    return bytes(data)


def no_end(found: list[Sample], rng: random.Random) -> bytes:
    return plain(found)[: -rng.randrange(3 * BLOCK, 6 * BLOCK)]


def _with(extra: list[Member]) -> Damage:
    def made(found: list[Sample], rng: random.Random) -> bytes:
        members = [member for sample in found for member in sample.members()]
        place = rng.randrange(len(members) + 1)
        return write_tar([*members[:place], *extra, *members[place:]])

    return made


def _renamed(name: str) -> Damage:
    """The first sample's picture and JSON are called something that leads elsewhere."""

    def made(found: list[Sample], rng: random.Random) -> bytes:
        return plain([replace(found[0], key=name), *found[1:]])

    return made


def _record(text: bytes) -> Damage:
    def made(found: list[Sample], rng: random.Random) -> bytes:
        place = rng.randrange(len(found))
        return plain([replace(sample, record=text) if number == place else sample for number, sample in enumerate(found)])

    return made


def _without(suffix: str) -> Damage:
    def made(found: list[Sample], rng: random.Random) -> bytes:
        gone = f"{rng.choice(found).key}.{suffix}"
        return write_tar([member for sample in found for member in sample.members() if member.name != gone])

    return made


def key_twice(found: list[Sample], rng: random.Random) -> bytes:
    return plain([*found[:-1], found[0]])


def picture_twice(found: list[Sample], rng: random.Random) -> bytes:
    return write_tar([found[0].members()[0], *(member for sample in found for member in sample.members())])


def uid_twice(found: list[Sample], rng: random.Random) -> bytes:
    return plain([*found[:-1], replace(found[-1], record=found[0].record)])


def negative_size(found: list[Sample], rng: random.Random) -> bytes:
    members = [member for sample in found for member in sample.members()]
    return write_tar([replace(members[0], size=-rng.choice([1, 512, 1 << 20])), *members[1:]])


def name_headers_without_end(found: list[Sample], rng: random.Random) -> bytes:
    header = Member("././@LongLink", b"x" * 200 + b"\0", type=tarfile.GNUTYPE_LONGNAME)
    return write_tar([header] * 3000) + plain(found)


def old_sparse(found: list[Sample], rng: random.Random) -> bytes:
    """One byte in the file, a terabyte when read."""
    members = write_tar([Member("big.webp", b"\0", type=tarfile.GNUTYPE_SPARSE)])
    header = bytearray(members[:BLOCK])
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 1
    header[483:495] = b"\x80" + HUGE.to_bytes(11, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + members[BLOCK : 2 * BLOCK] + plain(found)


def noise(found: list[Sample], rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 20_000))


def gzipped(found: list[Sample], rng: random.Random) -> bytes:
    return gzip.compress(plain(found))


def page(found: list[Sample], rng: random.Random) -> bytes:
    return b"<html>" + rng.randbytes(5000).hex().encode()


def zeros(found: list[Sample], rng: random.Random) -> bytes:
    return bytes(rng.randrange(1, 40) * BLOCK)


def other_archive(found: list[Sample], rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        tar.addfile(tarfile.TarInfo("x.webp"))
    return buffer.getvalue()


def made(canary: str) -> dict[str, Damage]:
    """Args: canary: an absolute folder in which nothing may ever be written."""
    deep = b"[" * 200_000
    return {
        **{
            function.__name__: function
            for function in (
                bad_header,
                no_end,
                key_twice,
                picture_twice,
                uid_twice,
                negative_size,
                name_headers_without_end,
                old_sparse,
                noise,
                gzipped,
                page,
                zeros,
                other_archive,
            )
        },
        "path_upwards": _renamed(f"../../../../../../../..{canary}/upwards"),
        "path_absolute": _renamed(f"{canary}/absolute"),
        "path_backslash": _renamed("..\\..\\canary"),
        "path_with_control": _renamed("00000\n"),
        "symlink": _with([Member("link.webp", b"", type=tarfile.SYMTYPE, linkname=canary)]),
        "symlink_then_through": _with(
            [Member("door", b"", type=tarfile.SYMTYPE, linkname=canary), Member("door/through.webp", b"x")]
        ),
        "hardlink": _with([Member("link.json", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")]),
        "device": _with([Member("zero.webp", b"", type=tarfile.CHRTYPE)]),
        "block_device": _with([Member("disk.webp", b"", type=tarfile.BLKTYPE)]),
        "fifo": _with([Member("pipe.webp", b"", type=tarfile.FIFOTYPE)]),
        "folder": _with([Member("folder.webp", b"", type=tarfile.DIRTYPE)]),
        "unknown_type": _with([Member("what.webp", b"", type=b"Z")]),
        "pax_sparse": _with(
            [
                Member(
                    "GNUSparseFile.0/big.webp",
                    b"1\n0\n1\n".ljust(BLOCK, b"\0") + b"x",
                    pax=(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(HUGE))),
                )
            ]
        ),
        "pax_negative_size": _with([Member("small.webp", b"x", pax=(("size", "-1000000"),))]),
        "pax_huge_size": _with([Member("huge.webp", b"x", pax=(("size", str(HUGE)),))]),
        "huge_picture": _with([Member("huge.webp", b"x", size=HUGE)]),
        "huge_json": _with([Member("huge.json", b"{}", size=HUGE)]),
        "huge_name": _with([Member("././@LongLink", b"x", type=tarfile.GNUTYPE_LONGNAME, size=1 << 33)]),
        "huge_pax": _with([Member("pax", b"x", type=tarfile.XHDTYPE, size=1 << 33)]),
        "no_json": _without("json"),
        "no_picture": _without("webp"),
        "json_cut": _record(b'{"uid": "a", "row": '),
        "json_list": _record(b"[1, 2]"),
        "json_deep": _record(deep),
        "json_deep_inside": _record(b'{"uid": "a", "row": 1, "more": ' + deep),
        "json_no_utf8": _record(b'{"uid": "\xff\xfe", "row": 1}'),
        "json_no_unicode": _record(b'{"uid": "a\\ud800", "row": 1}'),
        "json_huge_number": _record(b'{"uid": "a", "row": 1' + b"0" * 5000 + b"}"),
        "json_no_row": _record(b'{"uid": "a"}'),
        "json_row_is_text": _record(b'{"uid": "a", "row": "1"}'),
        "json_row_is_true": _record(b'{"uid": "a", "row": true}'),
        "json_uid_is_number": _record(b'{"uid": 3, "row": 1}'),
        "json_caption_is_list": _record(b'{"uid": "a", "row": 1, "caption": ["x"]}'),
        "json_captions_hold_numbers": _record(b'{"uid": "a", "row": 1, "captions": [1]}'),
        "json_empty": _record(b""),
    }
