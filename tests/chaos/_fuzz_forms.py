"""Multipart forms for `fuzz`, whole and broken."""

import random
from collections.abc import Callable

BOUNDARY = b"q7w8e9"
TYPE = b"multipart/form-data; boundary="
FORM_TYPE = TYPE + BOUNDARY
PICTURE_TYPES = (b"image/jpeg", b"image/png", b"image/webp", b"application/octet-stream")
CHARSETS = (
    "utf-8",
    "utf-7",
    "utf-16",
    "latin-1",
    "idna",
    "punycode",
    "rot13",
    "unicode_escape",
    "undefined",
    "hex",
    "x" * 300,
    "\xe9",
)
DISPOSITIONS = (
    b"", b"\0", b";" * 2000, b"form-data", b"attachment; name=images", b"form-data; name=images; filename=",
    b'form-data; name="images"; filename="', b"form-data; name*=utf-8''%ff; filename*=bogus''%ff",
    b'form-data; name="images\xff"', b'form-data; name="labels"; name="x"', b'form-data; name="images"; filename="\xff\0"',
    b'form-data; filename="a.png"',
    b'form-data; name="images"; filename="' + b"../" * 500 + b'"', b"form-data; name=" + b"x" * 9000,
    b'form-data; name="\\"; filename=\\',
)  # fmt: skip

Part = tuple[bytes, bytes]
"""Headers and content."""


def file_part(data: bytes, rng: random.Random) -> Part:
    media_type = rng.choice(PICTURE_TYPES)
    return b'content-disposition: form-data; name="images"; filename="a.png"\r\ncontent-type: ' + media_type, data


def text_part(name: str, value: bytes) -> Part:
    return f'content-disposition: form-data; name="{name}"'.encode(), value


def form_of(parts: list[Part], boundary: bytes = BOUNDARY) -> bytes:
    written = [b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts]
    return b"".join(written) + b"--" + boundary + b"--\r\n"


def broken_form(parts: list[Part], rng: random.Random) -> tuple[str, bytes, bytes]:
    """What is wrong, the content type, and the body."""
    kind = rng.choice(sorted(_BREAKS))
    media_type, body = _BREAKS[kind](parts, rng)
    return kind, media_type, body


def _charset(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    return FORM_TYPE + b"; charset=" + rng.choice(CHARSETS).encode("latin-1"), form_of(parts)


def _cut(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    body = form_of(parts)
    return FORM_TYPE, body[: rng.choice((len(body) - len(BOUNDARY) - 6, rng.randrange(len(body))))]


def _boundary(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    """None, another one, or one that is hardly one."""
    odd = rng.choice((b"\xff", b"a" * 300, b"-", b"--", b"a b", b"'", b"=?"))
    return rng.choice(
        (
            (b"multipart/form-data", form_of(parts)),
            (b"multipart/form-data;boundary", form_of(parts)),
            (b"multipart/form-data; ;=;", form_of(parts)),
            (TYPE + b'""', form_of(parts)),
            (TYPE + b"other", form_of(parts)),
            (TYPE + b'"' + odd + b'"', form_of(parts, odd)),
        )
    )


def _flip(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    changed = bytearray(form_of(parts))
    for _ in range(rng.choice((1, 8))):
        changed[rng.randrange(min(len(changed), rng.choice((200, len(changed)))))] ^= 1 << rng.randrange(8)
    return FORM_TYPE, bytes(changed)


def _line_ends(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    return FORM_TYPE, form_of(parts).replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\r\n")))


def _disposition(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    return FORM_TYPE, form_of([*parts[:-1], (b"content-disposition: " + rng.choice(DISPOSITIONS), parts[-1][1])])


def _headers(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    """Long ones, many, or none that is one."""
    (head, content), *rest = parts
    more = rng.choice((b"\r\nx: " + b"y" * 5_000, b"\r\nx: " + b"y" * 500_000, b"\r\nx: y" * 100, b"\r\nx: y" * 10_000, b""))
    return FORM_TYPE, form_of([(head + more if more else rng.randbytes(50), content), *rest])


def _many(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    name = rng.choice(("labels", "templates", "x"))
    texts = [text_part(name, b"a%d" % number) for number in range(rng.choice((200, 200, 12_000)))]
    return FORM_TYPE, form_of(rng.choice((texts, [*texts, *parts], [*parts, *[parts[-1]] * rng.choice((40, 1000))])))


def _around(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    """Something before it and behind it, or nothing else."""
    before = rng.choice((b"\r\n" * 100, b"x" * 1000 + b"\r\n", b"--"))
    return FORM_TYPE, rng.choice((before + form_of(parts) + b"x" * 1000, b"--" + BOUNDARY + b"--\r\n", before, b""))


def _nested(parts: list[Part], rng: random.Random) -> tuple[bytes, bytes]:
    head = b'content-disposition: form-data; name="images"\r\ncontent-type: multipart/mixed; boundary=inner'
    return FORM_TYPE, form_of([(head, form_of([parts[-1]], b"inner"))])


_BREAKS: dict[str, Callable[[list[Part], random.Random], tuple[bytes, bytes]]] = {
    "nothing": lambda parts, rng: (FORM_TYPE, form_of(parts)),
    "charset": _charset,
    "cut": _cut,
    "boundary": _boundary,
    "flip": _flip,
    "line ends": _line_ends,
    "disposition": _disposition,
    "headers": _headers,
    "many": _many,
    "around": _around,
    "nested": _nested,
}
