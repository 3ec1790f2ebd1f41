"""Large batches through a real Serve: answers while pictures still arrive, and an end when the client goes."""

import csv
import io
import json
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from typer.testing import CliRunner

from infra.errors import BadInputError, HyperClipError
from pipeline.cli import app
from serving.client import ServingClient
from tests.integration.serving.expected import check_predictions, expected_scores
from tests.unit.serving_helpers import picture
from training.bundle import Bundle

pytestmark = pytest.mark.integration

LABELS = ["cat", "dog", "a green bicycle"]


def test_more_pictures_than_an_answer_may_have(client: ServingClient, bundle: Bundle) -> None:
    task = client.create_task(LABELS).task_id
    pictures = [picture(seed % 5) for seed in range(60)]
    pictures[17] = b"text"
    lines = {line.index: line for line in client.classify_many(task, iter(pictures), top_k=3)}
    assert sorted(lines) == list(range(60))
    assert lines[17].problem is not None and lines[17].problem.status == 415
    for index in (0, 31, 59):
        check_predictions(lines[index].predictions, expected_scores(bundle, LABELS, pictures[index]))


def _part(data: bytes) -> bytes:
    head = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n' + data + b"\r\n"
    return f"{len(head):x}\r\n".encode() + head + b"\r\n"


def _opened(base_url: str, task: str) -> socket.socket:
    address = urlsplit(base_url)
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    head = (
        f"POST /v1/tasks/{task}/classify HTTP/1.1\r\nhost: {address.netloc}\r\naccept: application/x-ndjson\r\n"
        "content-type: multipart/form-data; boundary=x\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    connection.sendall(head.encode())
    return connection


def _read_until(connection: socket.socket, text: bytes) -> bytes:
    found = b""
    while text not in found:
        data = connection.recv(65536)
        assert data, found
        found += data
    return found


def test_the_first_answers_come_while_pictures_still_arrive(client: ServingClient, base_url: str) -> None:
    with _opened(base_url, client.create_task(LABELS).task_id) as connection:
        connection.sendall(_part(picture(0)) + _part(picture(1)))  # the second one says that the first one is whole
        assert b'"predictions":[' in _read_until(connection, b'"index":0')
        last = b"--x--\r\n"
        connection.sendall(f"{len(last):x}\r\n".encode() + last + b"\r\n0\r\n\r\n")
        assert b'"num_pictures":2' in _read_until(connection, b'{"end":true')


def test_a_client_that_goes_leaves_nothing_behind(client: ServingClient, base_url: str, http: httpx.Client) -> None:
    with _opened(base_url, client.create_task(LABELS).task_id) as connection:
        connection.sendall(_part(picture(0)) + _part(picture(1)))
        _read_until(connection, b'"index":0')
        assert "hyperclip_requests_in_flight 1.0" in http.get("/metrics").text
    deadline = time.monotonic() + 60
    while "hyperclip_requests_in_flight 0.0" not in http.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)  # the proxy notices when it notices


# ---- hyperclip classify --service ---------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    for number in range(12):
        (tmp_path / ("below" if number > 8 else ".") / f"{number:02d}.png").write_bytes(picture(number))
    (tmp_path / "05.png").write_bytes(b"text")
    return tmp_path


def test_the_command_gives_the_same_with_a_service_as_without(photos: Path, base_url: str, folder: Path) -> None:
    asked = ["classify", str(photos), "--labels", ",".join(LABELS), "--template", "a photo of a {}", "--json"]
    there = CliRunner().invoke(app, [*asked, "--service", base_url])
    here = CliRunner().invoke(app, [*asked, "--model", str(folder / "bundle")])
    for run in (there, here):
        assert isinstance(run.exception, HyperClipError) and run.exception.exit_code == 1
        assert str(run.exception) == "1 of 12 pictures could not be read"
    for one, other in zip(there.stdout.splitlines(), here.stdout.splitlines(), strict=True):
        found, expected = json.loads(one), json.loads(other)
        assert found["picture"] == expected["picture"] and found.get("problem") == expected.get("problem")
        for mine, his in zip(found.get("predictions", ()), expected.get("predictions", ()), strict=True):
            assert mine["label"] == his["label"] and mine["score"] == pytest.approx(his["score"], abs=1e-5)


def test_the_command_writes_tables_for_programs(photos: Path, base_url: str) -> None:
    asked = ["classify", str(photos / "00.png"), str(photos / "gone.png"), "--labels", "cat,dog", "--service", base_url]
    rows = list(csv.DictReader(io.StringIO(CliRunner().invoke(app, [*asked, "--format", "csv"]).stdout)))
    assert [(Path(row["picture"]).name, row["rank"]) for row in rows] == [("00.png", "1"), ("00.png", "2"), ("gone.png", "")]
    assert {row["label"] for row in rows[:2]} == {"cat", "dog"} and "No such file" in rows[2]["problem"]
    found = json.loads(CliRunner().invoke(app, [*asked, "--format", "json"]).stdout)
    assert [sorted(one) for one in found] == [["none_of_these", "picture", "predictions"], ["picture", "problem"]]


@pytest.mark.parametrize(
    ("says", "options"),
    [
        ("has its own model", ["--model", "m", "--labels", "cat", "--service", "http://x"]),
        ("which classes", ["--service", "http://x"]),
        ("is no address", ["--labels", "cat", "--service", "127.0.0.1:8000"]),
        ("is there twice", ["--labels", "cat,cat", "--service", "http://x"]),
        ("--json is --format ndjson", ["--labels", "cat", "--json", "--format", "csv"]),
        ("must hold {} once", ["--labels", "cat", "--template", "x", "--service", "HERE"]),
    ],
)
def test_what_the_command_refuses(says: str, options: list[str], photos: Path, base_url: str) -> None:
    asked = ["classify", str(photos), *(base_url if option == "HERE" else option for option in options)]
    error = CliRunner().invoke(app, asked).exception
    assert isinstance(error, BadInputError) and says in str(error)


def test_a_service_that_is_not_there_is_said(photos: Path) -> None:
    error = CliRunner().invoke(app, ["classify", str(photos), "--labels", "cat", "--service", "http://127.0.0.1:9"]).exception
    assert isinstance(error, HyperClipError) and not isinstance(error, BadInputError)
    assert "no service answers at http://127.0.0.1:9" in str(error)
