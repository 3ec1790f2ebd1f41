"""Pictures, URL lists and a scripted web server for the tests of data_prep."""

import datetime
import hashlib
import io
import ipaddress
import shutil
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from data_prep.download_config import DownloadConfig
from data_prep.fan_out import Done, Failed, TaskConfig
from data_prep.fetch.policy import FetchPolicy
from data_prep.url_list import UrlListConfig
from data_prep.url_plan import Partition, plan_url_list

Answer = Callable[[BaseHTTPRequestHandler], None]


def picture(seed: int = 0, *, width: int = 48, height: int = 48, image_format: str = "WEBP") -> bytes:
    """A picture of large random blobs, which survives resizing and hashes differently for each seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(buffer, image_format)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def no_progress(done: int, total: int, _note: str = "") -> None:
    assert 0 <= done <= total


def run_here(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], config: TaskConfig) -> Iterator[Any]:
    """What fan_out does, without Ray; last one first, because nothing may depend on the order."""
    for each in reversed(list(arguments)):
        yield function(*each)


def run_each_here(
    function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], _config: TaskConfig
) -> Generator[Done[Any] | Failed, None, None]:
    """What fan_out_each does, without Ray and second tries."""
    for place, each in reversed(list(enumerate(arguments))):
        try:
            yield Done(place, function(*each))
        except Exception as error:
            yield Failed(place, 1, error)


class WebServer:
    """Loopback server with scripted answers; counts connections, and requests other than those for robots.txt."""

    def __init__(self, answers: dict[str, Answer], *, tls: str | None = None, keep_alive: bool = False) -> None:
        self.answers = answers
        self.connections = 0
        self.requests: Counter[str] = Counter()
        self.robots_requests = 0
        self.agents: set[str] = set()
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if keep_alive else "HTTP/1.0"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                if self.path == "/robots.txt":
                    outer.robots_requests += 1
                else:
                    outer.requests[self.path] += 1
                outer.agents.add(self.headers.get("User-Agent", ""))
                outer.answers.get(self.path.partition("?")[0], status(404))(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def allowed(self, **changes: Any) -> FetchPolicy:
        """A policy that may reach this server."""
        return FetchPolicy(allowed_private_hosts=(self.host,), retry_wait_s=0.0, **changes)


@contextmanager
def web_server(answers: dict[str, Answer], *, tls: str | None = None, keep_alive: bool = False) -> Iterator[WebServer]:
    server = WebServer(answers, tls=tls, keep_alive=keep_alive)
    thread = threading.Thread(target=server._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server._server.shutdown()
        server._server.server_close()
        thread.join()


def body(data: bytes, *, announced: int | None = None, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for name, value in ({"Content_Type": "image/webp"} | headers).items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(data) if announced is None else announced))
        request.end_headers()
        request.wfile.write(data)

    return answer


def status(code: int) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def redirect(location: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(name for row in rows for name in row)  # from_pylist looks at the first row only
    pq.write_table(pa.Table.from_pylist([dict.fromkeys(names) | row for row in rows]), path)
    return str(path)


def url_rows(base_url: str, names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"uid": name, "url": f"{base_url}/{name}.webp", "caption": f"picture {name}", "concept": name} for name in names]


def one_partition(tmp_path: Path, rows: list[dict[str, Any]], config: DownloadConfig) -> Partition:
    """A list of these rows as one partition."""
    shutil.rmtree(tmp_path / "plan", ignore_errors=True)
    plan = plan_url_list(
        write_parquet(tmp_path / "urls.parquet", rows),
        UrlListConfig(),
        samples_per_partition=len(rows),
        samples_per_shard=config.samples_per_shard,
        output_uri=str(tmp_path),
    )
    return next(plan.partitions(str(tmp_path)))


def read_table(uri: str) -> pa.Table:
    return pq.read_table(uri)


def write_certificate(folder: Path) -> str:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return str(path)
