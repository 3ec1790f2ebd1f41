"""Labels, templates and JSON for `fuzz` that nobody would send on purpose."""

import json
import random

LONE_SURROGATE = "\ud800"
ODD = (
    "", " ", "\0", "a\0b", "\n", "\r\n", "\t", "\x1b[31mred", "\x7f", "\x85", "\u2028", "\u00a0", "\u3000", "\u200b", "\ufeff",
    "שלום", "مرحبا بالعالم", "\u202ecat\u202c", "\u2066cat\u2069", "ﷺ", "e\u0301", "é",
    "e" + "\u0301" * 250, "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤a̴l", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇺🇳", "👍🏿", "猫", "ねこ", "고양이", "ক্ষ",
    "İ", "ß", "ŉ", "\ufb2c", "\u0344", "ǅ", "\U0010ffff", "\ufffe",
    "\ue000", "\U000e0001", LONE_SURROGATE, "\udfff", "\udc80cat", "\ud83d",
    "<|startoftext|>", "<|endoftext|>", "<|endoftext|> cat <|startoftext|>", "<|endoftext|>" * 20, "<start_of_text>", "</w>",
    "[PAD]", "{}", "{0}", "{x}", "{{}}", "%s", "%n%n", "${HOME}", "$(id)", "`id`", "{{7*7}}", "../../etc/passwd", "C:\\con",
    "'; DROP TABLE", "<script>alert(1)</script>", "null", "true", "NaN", "-0", "1e999", "0x10", "cat" * 100, "a" * 301,
    "a b " * 75, "\\", '"', "*",
)  # fmt: skip
SCALARS = (
    "null", "true", "0", "-0", "1.5", "1e400", "-1e400", "1" * 5000, "0.1e-999999999", "NaN", "Infinity", "01", "+1", '"x"',
    "[]", "{}", "[[]]", '[""]', "[null]", "[1]", '[["cat"]]', '{"a":1}', '"\\ud800"', '"\\u0000"', '"\\x"', "'cat'", "cat", "",
)  # fmt: skip
HUGE_SHARE = 0.004
"""Of the texts and bodies of a megabyte and more, which take long to make and to read."""


def odd_text(rng: random.Random) -> str:
    """A text that a label may be, or that looks like one."""
    chance = rng.random()
    if chance < 0.6:
        return rng.choice(ODD)
    if chance < 0.75:
        return rng.choice(ODD) + rng.choice(ODD)
    if chance < 0.85:
        return f"thing {rng.randrange(10**6)}"
    planes = rng.choice(((0, 0x80), (0, 0x250), (0x300, 0x370), (0x590, 0x700), (0x2000, 0x2070), (0, 0x3000), (0, 0x110000)))
    return "".join(chr(rng.randrange(*planes)) for _ in range(rng.choice((1, 3, 20, 77, 300))))


def odd_texts(rng: random.Random) -> tuple[str, list[str]]:
    """A list of labels, and what is odd about it."""
    chance = rng.random()
    if chance < HUGE_SHARE:
        return rng.choice(
            (
                ("100,000 labels", [f"thing {number}" for number in range(100_000)]),
                ("100,000 odd labels", [odd_text(rng) for _ in range(100_000)]),
                ("label of 1 MB", ["cat", rng.choice(("a", "é", "👍", LONE_SURROGATE, "\0", "e\u0301")) * 2**20]),
            )
        )
    if chance < HUGE_SHARE + 0.005:
        return "1,000 labels", [f"thing {number} {rng.randrange(100)}" for number in range(1000)]
    if chance < 0.05:
        return "same label twice", [rng.choice(ODD)] * 2
    if chance < 0.5:  # one among good ones, so that nothing else is wrong
        return "one odd label", ["cat", "dog", odd_text(rng)]
    return "odd labels", [odd_text(rng) for _ in range(rng.randrange(1, 8))]


def odd_json(rng: random.Random, name: str) -> tuple[str, bytes]:
    """A body for a route that wants a list of texts under this name, and what is odd about it."""
    kind, texts = odd_texts(rng)
    content: dict[str, object] = {name: texts}
    if rng.random() < 0.3 and len(texts) < 100:
        content["templates"] = [
            rng.choice(("a photo of a {}", "{}", odd_text(rng), odd_text(rng) + "{}")) for _ in range(rng.randrange(4))
        ]
    if rng.random() < 0.1:
        content["pinned_version"] = odd_text(rng)
    body = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.5 or len(body) > 10**6:
        return kind, body.encode("utf-8", errors="surrogatepass")
    return _broken_json(rng, name, body)


def _broken_json(rng: random.Random, name: str, body: str) -> tuple[str, bytes]:
    scalar = rng.choice(SCALARS)
    depth = rng.choice((100, 10_000, 100_000))
    kinds: dict[str, str | bytes] = {
        "wrong type": f'{{"{name}": {scalar}}}',
        "wrong item": f'{{"{name}": ["cat", {scalar}]}}',
        "no object": scalar,
        "odd key": f'{{"{name}": ["cat"], {json.dumps(odd_text(rng))}: {scalar}}}',
        "key twice": f'{{"{name}": ["cat"], "{name}": {scalar}}}',
        "deep list": f'{{"{name}": {"[" * depth}{"]" * rng.choice((0, depth))}}}',
        "deep object": '{"a":' * depth,
        "cut json": body[: rng.randrange(len(body))],
        "two bodies": body + body,
        "raw control character": f'{{"{name}": ["a\0b\nc"]}}',
        "utf-16": body.encode("utf-16", errors="surrogatepass"),
        "utf-32": body.encode("utf-32-le", errors="surrogatepass"),
        "latin-1": body.encode("latin-1", errors="replace"),
        "byte order mark": b"\xef\xbb\xbf" + body.encode(errors="surrogatepass"),
        "no utf-8": f'{{"{name}": ["'.encode() + rng.choice((b"\xc0\x80", b"\xf8\x88", b"\xff", b"\xed\xa0\x80")) + b'"]}',
        "noise": rng.randbytes(rng.choice((1, 100, 10_000))),
        "nothing": b"",
    }  # fmt: skip
    kind = rng.choice(sorted(kinds))
    found = kinds[kind]
    return kind, found if isinstance(found, bytes) else found.encode("utf-8", errors="surrogatepass")
