"""The calls of `fuzz`: each number gives the same call for the same seed, whatever was answered before."""

import base64
import json
import random
from urllib.parse import quote

from tests.chaos._fuzz_forms import FORM_TYPE, PICTURE_TYPES, broken_form, file_part, form_of, text_part
from tests.chaos._fuzz_http import Call, Headers
from tests.chaos._fuzz_pictures import Pictures
from tests.chaos._fuzz_texts import odd_json, odd_text, odd_texts

JSON: Headers = ((b"content-type", b"application/json"),)
NDJSON = (b"accept", b"application/x-ndjson")
FOREIGN_TYPES = (
    b"image/gif", b"image/svg+xml", b"image/", b"text/plain", b"application/json", b"application/x-www-form-urlencoded",
    b"multipart/form-data", b"multipart/mixed; boundary=x", b"\xff\xfe", b"a" * 5000, b"image/png; charset=\xe9", b";", b",",
)  # fmt: skip
TOP_K = (
    "0", "1", "3", "1000", "1001", "-1", "", "1.5", "1e3", "\uff19", "²", "0x1", "9" * 400, "NaN", " 1", "%00",
    "1&top_k=2", "%ff", "%",
)  # fmt: skip
PARAMETERS = ("neutral", "specialized", "Neutral", "", "%00", "neutral%20", "x" * 5000, "%ed%a0%80")
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-request-id", b"\xff\xfe"), (b"x-request-id", b"a" * 4000), (b"x-request-id", b""), (b"x-request-id", b"a\tb"),
    (b"traceparent", b"00-" + b"f" * 32 + b"-" + b"0" * 16 + b"-ff"), (b"traceparent", b"\xff"), (b"tracestate", b"=" * 3000),
    (b"baggage", b"\xe9=%ff;;;,"), (b"authorization", b"Bearer \xff"), (b"authorization", b"Basic"),
    (b"x-api-key", b"\x80" * 999), (b"accept", b"\xff/*;q=9"), (b"accept", b"application/x-ndjson;q=0"),
    (b"accept-encoding", b"\xff"), (b"range", b"bytes=9-1"),
    (b"expect", b"100-continue"), (b"sec-fetch-site", b"cross-site"), (b"sec-fetch-site", b"\xff"), (b"cookie", b"\xff=;;="),
    (b"content-encoding", b"gzip"), (b"serve_multiplexed_model_id", b"\xff"), (b"serve-multiplexed-model-id", b"a"),
    (b"x-session-id", b"\xff"), (b"x-forwarded-for", b"\xff"), (b"if-none-match", b"*"), (b"forwarded", b"for=\xff"),
    (b"x-http-method-override", b"DELETE"), (b"host", b"\xff"),
)  # fmt: skip
ODD_PATHS = (
    "/v1/tasks/{odd}",
    "/v1/tasks/{odd}/classify",
    "/v1/tasks/{odd}/export",
    "/{odd}",
    "/v1/tasks/{task}/{odd}",
    "//v1//{odd}",
)
PATHS = (
    "/", "/healthz", "/metrics", "/v1/tasks", "/v1/models", "/openapi.json", "/v1/embed/text", "/v1/embed/image",
    "/v1/classify", "/v1/tasks/{task}/classify", "/v1/tasks/{task}/export",
)  # fmt: skip
METHODS = ("HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "GET", "POST", "PROPFIND")


class Calls:
    """Draws them."""

    def __init__(self, seed: int, task: str) -> None:
        """Args: task, one that is there."""
        self._seed, self._task = seed, task
        self._pictures = Pictures(seed)

    def draw(self, number: int) -> Call:
        rng = random.Random(f"{self._seed}:{number}")
        chance = rng.random()
        if chance < 0.6:
            return self._of_pictures(rng)
        if chance < 0.8:
            return self._of_texts(rng)
        if chance < 0.92:
            return self._of_forms(rng)
        return self._of_heads(rng)

    # ---- pictures -----------------------------------------------------------------------------------------------------

    def _of_pictures(self, rng: random.Random) -> Call:
        route = rng.choice(("raw", "raw", "raw", "form", "stream", "at once", "embed", "embed form", "base64"))
        kind, picture = self._pictures.draw(rng)
        name, query = f"{route}: {kind}", _query(rng)
        classify = f"/v1/tasks/{self._task}/classify{query}".encode()
        if route == "base64":  # as other services take it
            body = json.dumps({"image": base64.b64encode(picture).decode()}).encode()
            return Call(name, "POST", classify, rng.choice((JSON, _typed(rng.choice(PICTURE_TYPES)))), body)
        if route in ("raw", "embed"):
            target = classify if route == "raw" else b"/v1/embed/image"
            media_type = rng.choice(FOREIGN_TYPES if rng.random() < 0.1 else PICTURE_TYPES)
            chunk_size = rng.choice((1, 1000, 10**6)) if rng.random() < 0.05 and len(picture) < 5000 else None
            return Call(name, "POST", target, _typed(media_type), picture, chunk_size=chunk_size)
        pictures = [picture] + [self._pictures.draw(rng)[1] for _ in range(rng.choice((0, 0, 1, 3)))]
        rng.shuffle(pictures)
        parts = [file_part(one, rng) for one in pictures]
        target, headers = classify, ()
        if route == "at once":
            target = b"/v1/classify"
            parts = [text_part("labels", label.encode()) for label in ("cat", "dog")] + parts
        elif route == "embed form":
            target = b"/v1/embed/image"
        elif route == "stream":
            headers = (NDJSON,)
        return Call(name, "POST", target, (*headers, *_typed(FORM_TYPE)), form_of(parts), num_pictures=len(pictures))

    # ---- texts --------------------------------------------------------------------------------------------------------

    def _of_texts(self, rng: random.Random) -> Call:
        target, field = rng.choice((("/v1/tasks", "labels"), ("/v1/tasks", "labels"), ("/v1/embed/text", "texts")))
        kind, body = odd_json(rng, field)
        headers = JSON
        if rng.random() < 0.05:
            headers = rng.choice(
                ((), _typed(b"application/json; charset=\xff"), _typed(b"text/json"), _typed(b"Application/JSON;;"))
            )
        return Call(f"{target}: {kind}", "POST", target.encode(), headers, body)

    # ---- forms --------------------------------------------------------------------------------------------------------

    def _of_forms(self, rng: random.Random) -> Call:
        """Something else than the picture is wrong, of whatever route takes a form."""
        picture = rng.choice(self._pictures.good)
        texts = odd_texts(rng)[1][:20_000]
        encoding = rng.choice(("utf-8", "utf-16", "utf-7", "latin-1"))
        fields = [text_part("labels", text.encode(encoding, errors="replace")) for text in texts]
        if rng.random() < 0.3:
            name = rng.choice(("templates", "top_k", "pinned_version", "labels", "images", "", "x" * 3000, "\0", "לא"))
            fields.append(text_part(name, odd_text(rng).encode(errors="surrogatepass")))
        target, headers, parts = rng.choice(
            (
                (b"/v1/classify", (), [*fields, file_part(picture, rng)]),
                (b"/v1/classify", (), [*fields, file_part(picture, rng)]),
                (b"/v1/embed/image", (), [file_part(picture, rng)]),
                (f"/v1/tasks/{self._task}/classify".encode(), (), [file_part(picture, rng)]),
                (f"/v1/tasks/{self._task}/classify".encode(), (NDJSON,), [file_part(picture, rng)]),
            )
        )
        kind, media_type, body = broken_form(parts, rng)
        return Call(f"form: {kind}", "POST", target, (*headers, (b"content-type", media_type)), body)

    # ---- the rest of a request ----------------------------------------------------------------------------------------

    def _of_heads(self, rng: random.Random) -> Call:
        """Other paths, methods and headers."""
        picture, kind = rng.choice(self._pictures.good), rng.choice(("path", "method", "header", "header", "query"))
        task = self._task
        if kind == "path":
            ids = (odd_text(rng), task.upper(), task + "a", task[:-1], "..", "%2e%2e%2f" * 3, "%00", "%ff%fe", "*", "a" * 8000)
            odd = quote(rng.choice(ids).encode(errors="surrogatepass"), safe="%/*")
            path = rng.choice(ODD_PATHS).format(odd=odd, task=task).encode()
            method = rng.choice(("GET", "POST", "DELETE"))
            return Call("head: path", method, path, _typed(b"image/png"), picture if method == "POST" else b"")
        if kind == "method":
            path, method = rng.choice(PATHS).format(task=task).encode(), rng.choice(METHODS)
            return Call("head: method", method, path, (), rng.choice((b"", b"x")) if method != "HEAD" else b"")
        headers = rng.sample(HEADERS, k=rng.choice((1, 2))) if kind == "header" else []
        target = f"/v1/tasks/{task}/classify{_query(rng, odd=kind == 'query')}".encode()
        return Call(f"head: {kind}", "POST", target, (*_typed(b"image/png"), *headers), picture)


def _typed(media_type: bytes) -> Headers:
    return ((b"content-type", media_type),)


def _query(rng: random.Random, *, odd: bool = False) -> str:
    if not odd and rng.random() < 0.8:
        return ""
    top_k, parameters = (quote(rng.choice(values), safe="%&=") for values in (TOP_K, PARAMETERS))
    return rng.choice(
        (f"?top_k={top_k}", f"?parameters={parameters}", f"?top_k={top_k}&parameters={parameters}", "?" + "&" * 999, "?=%")
    )
