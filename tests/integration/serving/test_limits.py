"""What a client may not do to the service, tried byte by byte over real connections."""

import http.client
import io
import json
import re
import socket
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from serving.client import ServingClient
from serving.config import ServingConfig
from tests.unit.serving_helpers import picture

pytestmark = pytest.mark.integration

HEAD = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: %b\r\n"
AS_JSON = {"content-type": "application/json"}


def opened(base_url: str) -> socket.socket:
    address = urlsplit(base_url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def answer_to(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def said(base_url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    with opened(base_url) as connection:
        connection.sendall(request)
        return answer_to(connection)


def test_a_false_content_length_is_not_believed(base_url: str, client: ServingClient) -> None:
    head = HEAD % (b"/v1/tasks", b"application/json")
    body = b'{"labels": ["cat"]}'
    # shorter than the body: what is left over is no request, and nothing of it is run
    assert said(base_url, head + b"content-length: 10\r\n\r\n" + body)[0] == 400
    # far too long: refused by its own word, before a byte of it has come
    status, headers, problem = said(base_url, head + b"content-length: 999999999999999999\r\n\r\n")
    assert (status, headers["content-type"]) == (413, "application/problem+json")
    assert json.loads(problem)["type"] == "urn:hyperclip:problem:body_too_long"
    for words in (
        b"content-length: ten\r\n\r\n",
        b"content-length: -1\r\n\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
    ):
        assert said(base_url, head + words + body)[0] == 400
    # chunks whose sizes are no numbers
    assert said(base_url, head + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + body)[0] == 400
    # longer than the body: the client goes away, and its place is free again
    with opened(base_url) as connection:
        connection.sendall(head + b"content-length: 1000\r\n\r\n" + body)
    assert client.create_task(["cat"]).num_labels == 1


def test_chunks_without_an_end_are_cut_off(base_url: str) -> None:
    chunk = b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000)
    with opened(base_url) as connection:
        connection.sendall(HEAD % (b"/v1/embed/image", b"image/png") + b"transfer-encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 200_000_000:  # a hundred times what is allowed
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:  # the service has answered and hung up
            pass
        assert sent < 200_000_000


def other_formats() -> dict[str, bytes]:
    image = Image.new("RGB", (8, 8), "red")
    made = {}
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        made[kind] = buffer.getvalue()
    return made | {"SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>', "PDF": b"%PDF-1.7\n", "ZIP": b"PK\x03\x04" + bytes(40)}


def test_other_formats_are_refused_by_their_bytes(http: httpx.Client) -> None:
    for kind, data in other_formats().items():
        response = http.post("/v1/embed/image", content=data, headers={"content-type": "image/png"})
        assert response.status_code == 415, (kind, response.text)
        assert response.json()["type"] == "urn:hyperclip:problem:not_an_image"


def form(parts: list[tuple[str, bytes]], *, boundary: bytes = b"b") -> dict[str, Any]:
    """A multipart form, written by hand: `httpx` would not write a wrong one."""
    written = b"".join(
        b"--%b\r\ncontent-disposition: form-data; %b\r\n\r\n%b\r\n" % (boundary, name.encode(), value) for name, value in parts
    )
    return {
        "content": written + b"--%b--\r\n" % boundary,
        "headers": {"content-type": f"multipart/form-data; boundary={boundary.decode()}"},
    }


def test_forms_made_to_hurt_are_refused(http: httpx.Client, client: ServingClient) -> None:
    file = ('name="images"; filename="a.png"', picture(0))
    hostile: dict[str, tuple[int, dict[str, Any]]] = {
        "20,000 fields": (400, form([('name="labels"', b"x")] * 20_000)),
        "5,000 empty files": (422, form([('name="images"; filename="a"', b"")] * 5_000)),
        "a field of a megabyte and more": (400, form([('name="labels"', b"x" * 1_500_000), file])),
        "a name of half a megabyte": (400, form([(f'name="{"n" * 500_000}"', b"x")])),
        "no name": (400, form([("nothing", b"x")])),
        "no boundary": (400, {"content": b"--b\r\n", "headers": {"content-type": "multipart/form-data"}}),
        "a path as file name": (
            200,
            form([('name="labels"', b"cat"), ('name="images"; filename="../../etc/passwd"', picture(0))]),
        ),
    }
    for name, (status, request) in hostile.items():
        response = http.post("/v1/classify", **request)
        assert response.status_code == status, (name, response.text[:300])
        if status != 200:
            assert response.headers["content-type"] == "application/problem+json", name
    assert client.health().status == "ok"


def test_json_made_to_hurt_is_refused(http: httpx.Client) -> None:
    deep = b'{"labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    hostile: dict[str, tuple[int, bytes]] = {
        "deep": (400, deep),
        "not a number": (422, b'{"labels": ["a", NaN]}'),
        "infinite": (422, b'{"labels": [Infinity]}'),
        "a long number": (400, b'{"labels": [' + b"9" * 100_000 + b"]}"),
        "half a character": (400, b'{"labels": ["\\ud83d"]}'),
        "no UTF-8": (400, b'{"labels": ["\xff"]}'),
        "a control character": (422, b'{"labels": ["a\\u0000"]}'),
        "another form": (422, b'{"labels": {"0": "cat"}}'),
    }
    for name, (status, body) in hostile.items():
        response = http.post("/v1/tasks", content=body, headers=AS_JSON)
        assert response.status_code == status, (name, response.text[:300])
        assert len(response.content) < 5_000, name  # what was sent is not sent back


def test_names_in_any_script_are_kept_and_their_two_spellings_are_one(client: ServingClient) -> None:
    names = ["café", "猫", "Ελληνικά", "עברית", "नमस्ते", "🍕", "👩‍🚀", 'quote " and \\ and <b>', "  outer space  "]
    created = client.create_task(names)
    assert client.task(created.task_id).labels == tuple(name.strip() for name in names)
    respelled = ["cafe\u0301", *names[1:]]  # e and an accent in two characters
    assert client.create_task(respelled).task_id == created.task_id
    answer = client.classify(created.task_id, [picture(0)], top_k=20)
    assert {found.label for found in answer.results[0].predictions or ()} == {name.strip() for name in names}


def test_many_labels_are_taken_and_too_many_tokens_are_not(client: ServingClient, http: httpx.Client) -> None:
    many = client.create_task([f"thing {number}" for number in range(2_000)])
    assert many.num_labels == 2_000
    answer = client.classify(many.task_id, [picture(0)], top_k=1_000)
    assert len(answer.results[0].predictions or ()) == 1_000
    body = {"labels": [f"thing {number}" for number in range(1_000)], "templates": [f"{n} of {{}}" for n in range(100)]}
    response = http.post("/v1/tasks", json=body)
    assert response.status_code == 422 and "100,000 tokens" in response.json()["detail"]
    long = http.post("/v1/tasks", json={"labels": ["🍕" * 100]})  # few characters, many tokens
    assert long.status_code == 422 and "the text encoder reads 77" in long.json()["detail"]


def in_flight(http: httpx.Client) -> int:
    (number,) = re.findall(r"^hyperclip_requests_in_flight (\d+)", http.get("/metrics").text, re.MULTILINE)
    return int(number)


def test_overload_is_shed_and_passes(base_url: str, config: ServingConfig, http: httpx.Client) -> None:
    body = b'{"labels": ["cat", "dog"]}'
    head = HEAD % (b"/v1/tasks", b"application/json") + b"content-length: %d\r\n\r\n" % len(body)
    with ExitStack() as stack:
        held = [stack.enter_context(opened(base_url)) for _ in range(config.limits.max_requests_in_flight)]
        for connection in held:
            connection.sendall(head + body[:1])
        while in_flight(http) < len(held):  # each call is an answer of the service: no time is waited for
            pass
        refused = http.get("/v1/models")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == str(config.limits.retry_after_s)
        assert refused.json()["type"] == "urn:hyperclip:problem:overloaded"
        assert http.get("/healthz").status_code == 200  # an overloaded service is not a dead one
        for connection in held:
            connection.sendall(body[1:])
        assert {answer_to(connection)[0] for connection in held} == {200}
    assert http.get("/v1/models").status_code == 200
