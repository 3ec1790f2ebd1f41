"""The two sides of `serve_body`, in one application."""

import base64
import json
import os
import secrets
import statistics
import tempfile

from fastapi import FastAPI, Request
from ray import serve
from starlette.responses import Response

from infra.cluster import ClusterConfig, connected
from serving.client import ServingClient
from serving.config import ServingConfig
from serving.deployments.ingress import Ingress
from serving.launch import deployed
from serving.tenants import tenant_of
from tests.benchmarks._echo_alone import cpu_seconds
from tests.benchmarks._serve_echo_sides import (
    CONCURRENCY,
    LABELS,
    OPTIONS,
    SERVED,
    NoOpHypernetwork,
    NoOpImageEncoder,
    Side,
)
from tests.chaos._processes import MARK
from tests.http_load import request_bytes
from tests.result import benchmark_result, environment, interleaved, measure, spread
from tests.unit.serving_helpers import picture

PICTURES = {"thumbnail": picture(side=48), "photo": picture(side=600, kind="JPEG")}


@serve.deployment(**OPTIONS)
class IngressWithBase64(Ingress):
    """Our ingress, and one route more."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = super().__serve_build_asgi_app__()
        service = self._service

        async def classify(request: Request) -> Response:
            image = base64.b64decode(json.loads(await request.body())["image"], validate=True)
            answer = await service.classify(request.path_params["task"], [image], tenant=tenant_of(request), top_k=5)
            return Response(answer.model_dump_json(), media_type="application/json")

        app.add_route("/base64/{task}", classify, methods=["POST"])
        return app


def measured(*, rounds: int, seconds_a_round: float) -> int:
    """Load both sides in turns, once a size of picture; print the result, return the exit status."""
    mark = os.environ[MARK] = secrets.token_hex(8)
    found: dict[str, dict[str, MeteredSide]] = {}
    with tempfile.TemporaryDirectory(prefix="hyperclip-body-") as folder, connected(ClusterConfig(num_cpus=2)):
        config = ServingConfig(bundle_uri="unused", task_store_uri=folder, allow_anonymous=True)
        application = IngressWithBase64.bind(config, SERVED, NoOpHypernetwork.bind(), NoOpImageEncoder.bind(LABELS))
        with deployed(application, host="127.0.0.1", port=0) as base_url, ServingClient(base_url) as client:
            task = client.create_task(LABELS).task_id
            port = int(base_url.rpartition(":")[2])
            for size, body in PICTURES.items():
                as_json = json.dumps({"image": base64.b64encode(body).decode()}).encode()
                requests = {
                    "binary": request_bytes(f"/v1/tasks/{task}/classify", body, content_type="image/png"),
                    "base64": request_bytes(f"/base64/{task}", as_json, content_type="application/json"),
                }
                sides = {name: MeteredSide(port, request, mark, seconds_a_round) for name, request in requests.items()}
                interleaved(sides, rounds=rounds)
                found[size] = sides
    photo = found["photo"]
    failures = [failure for sides in found.values() for side in sides.values() for failure in side.failures]
    return benchmark_result(
        "serve_body",
        ratio=statistics.median(photo["binary"].rates) / statistics.median(photo["base64"].rates),
        goal=None,
        measures={
            "failed": measure(len(failures), goal=("<=", 0)),
            **{
                f"{size} {name} cpu a request": measure(statistics.median(side.cpu_ms), unit="ms")
                for size, sides in found.items()
                for name, side in sides.items()
            },
        },
        rates={f"{size} {name}": spread(side.rates) for size, sides in found.items() for name, side in sides.items()},
        sizes={"concurrency": CONCURRENCY, **{f"{size}_bytes": len(body) for size, body in PICTURES.items()}},
        failures=failures[:3],
        **environment("ray", "fastapi", "starlette"),
    )


class MeteredSide(Side):
    """A side under load whose cost is taken too."""

    def __init__(self, port: int, request: bytes, mark: str, seconds: float) -> None:
        super().__init__(port, request, CONCURRENCY, seconds)
        self._mark = mark
        self.cpu_ms: list[float] = []
        self.rates: list[float] = []

    def __call__(self) -> float:
        before = cpu_seconds(self._mark)
        self.rates.append(super().__call__())
        self.cpu_ms.append((cpu_seconds(self._mark) - before) / len(self.loads[-1].latencies_s) * 1000)
        return self.rates[-1]
