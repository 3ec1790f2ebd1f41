"""The two sides of `serve_echo`: what a bare Serve application of two hops is, and our service with a no-op engine."""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from infra.cluster import ClusterConfig, connected
from serving.app import ingress_application
from serving.client import ServingClient
from serving.config import DeploymentScale, ServingConfig
from serving.launch import LOGGING, deployed
from serving.messages import Classified, Refused, Specialized
from serving.model_source import ServedModel
from serving.schemas import ImageTimings, ModelInfo, Parameters, Prediction
from serving.switches import FAST
from serving.task_record import TaskRecord, specialization_id
from tests.http_load import Load, request_bytes, run_load
from tests.result import benchmark_result, environment, interleaved, measure, spread
from tests.unit.serving_helpers import picture

CONCURRENCY = 16
LABELS = [f"a class with a name {number}" for number in range(10)]
Caller = Mapping[str, str] | None
SCALE = DeploymentScale(num_cpus=0.1, max_ongoing_requests=256)
MODEL = ModelInfo(
    name="no-op", version="1", digest="0" * 64, architecture="none", image_size=64, embed_dim=128, num_generated=1000,
    templates=("{}",), metrics={},
)  # fmt: skip
SERVED = ServedModel(
    name=MODEL.name, version=MODEL.version, digest=MODEL.digest, bundle_uri=None, tracking=None, registered=None,
    cache_path=Path(),
)  # fmt: skip
OPTIONS: dict[str, Any] = {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": 0.1}}


@serve.deployment(**OPTIONS)
class NoOpHypernetwork:
    """Makes nothing, and says that it did."""

    async def describe(self, *, caller: Caller = None) -> tuple[ModelInfo, ...]:
        return (MODEL,)

    async def specialize(self, record: TaskRecord, *, digest: str, caller: Caller = None) -> Specialized:
        return Specialized(specialization_id(record.task_id, digest), 0.0)


@serve.deployment(**OPTIONS)
class NoOpImageEncoder:
    """Takes pictures, and gives what the engine would give, without looking at them."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)

    async def describe(self, *, caller: Caller = None) -> tuple[ModelInfo, ...]:
        return (MODEL,)

    async def classify(
        self,
        images: list[bytes],
        *,
        task_id: str,
        specialization_id: str,
        digest: str,
        parameters: Parameters,
        top_k: int,
        tenant: str,
        caller: Caller = None,
    ) -> list[Classified | Refused]:
        best = tuple(Prediction(label=label, score=0.1234567, match=0.0123456) for label in self._labels[:top_k])
        return [Classified(best, 1, ImageTimings(decode=1.234, queue=1.234, forward=1.234)) for _ in images]


@serve.deployment(**OPTIONS)
class Second:
    """The second hop: takes a body, gives an answer of given length."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def echo(self, body: bytes) -> bytes:
        return self._answer


@serve.deployment(**OPTIONS)
class First:
    """The first hop: reads the body, hands it on, answers with what comes back."""

    def __init__(self, second: DeploymentHandle) -> None:
        self._handle = second
        self._echo: DeploymentHandle | None = None

    async def __call__(self, request: Request) -> Response:
        if self._echo is None:  # made once and with pickle, as in our own handles
            options = {"request_serialization": "pickle", "response_serialization": "pickle"}
            self._echo = self._handle.options(method_name="echo", **options)
        return Response(await self._echo.remote(await request.body()), media_type="application/json")


def bare_echo(answer: bytes) -> Application:
    """Two hops and nothing else; the answer is as long as ours, so that neither side moves more bytes."""
    return First.bind(Second.bind(answer))


def our_service(config: ServingConfig, labels: Sequence[str]) -> Application:
    """Our ingress as it is, with backends that do nothing."""
    return ingress_application(config, SERVED, NoOpHypernetwork.bind(), NoOpImageEncoder.bind(labels))


@dataclass
class Side:
    """One application under load; `loads` grows by one each time that it is called."""

    port: int
    request: bytes
    concurrency: int
    seconds: float
    loads: list[Load] = field(default_factory=list)

    def __call__(self) -> float:
        self.loads.append(run_load(self.port, self.request, concurrency=self.concurrency, seconds=self.seconds))
        return self.loads[-1].rate

    @property
    def failures(self) -> list[str]:
        return [failure for load in self.loads for failure in load.failures]

    def p99_ms(self) -> float:
        """The median of the rounds."""
        return statistics.median(load.percentile_ms(0.99) for load in self.loads)


def measured(*, rounds: int, seconds_a_round: float, quick: bool) -> int:
    """Run both sides in turns, first one request at a time, then many; print the result, return the exit status."""
    body = picture(side=48)
    with (
        tempfile.TemporaryDirectory(prefix="hyperclip-echo-") as folder,
        connected(ClusterConfig(num_cpus=2)),
        deployed(our_service(_config(folder), LABELS), host="127.0.0.1", port=0) as base_url,
        ServingClient(base_url) as client,
    ):
        task = client.create_task(LABELS).task_id
        answer = httpx.post(f"{base_url}/v1/tasks/{task}/classify", content=body, headers={"content-type": "image/png"})
        serve.run(bare_echo(answer.content), name="echo", route_prefix="/echo", logging_config=LOGGING)
        port = int(base_url.rpartition(":")[2])
        paths = {"ours": f"/v1/tasks/{task}/classify", "echo": "/echo"}
        found: dict[int, dict[str, Side]] = {}
        for concurrency in (1, CONCURRENCY):
            sides = {
                name: Side(port, request_bytes(path, body, content_type="image/png"), concurrency, seconds_a_round)
                for name, path in paths.items()
            }
            for side in sides.values():  # until every process is warm
                run_load(port, side.request, concurrency=concurrency, seconds=1)
            interleaved(sides, rounds=rounds)
            found[concurrency] = sides
    many, one = found[CONCURRENCY], found[1]
    failures = [failure for sides in found.values() for side in sides.values() for failure in side.failures]
    return benchmark_result(
        "serve_echo",
        ratio=_ratio(many),
        goal=None if quick else (">=", 0.85),
        measures={
            "p99_ratio": measure(many["ours"].p99_ms() / many["echo"].p99_ms(), goal=None if quick else ("<=", 1.25)),
            "ratio_one_at_a_time": measure(_ratio(one)),
            "failed": measure(len(failures), goal=("<=", 0)),
            **{f"{name}_p99": measure(side.p99_ms(), unit="ms") for name, side in many.items()},
            **{f"{name}_p50_one_at_a_time": measure(_p50_ms(side), unit="ms") for name, side in one.items()},
        },
        rates={name: spread([load.rate for load in side.loads]) for name, side in many.items()},
        sizes={"concurrency": CONCURRENCY, "body_bytes": len(body), "answer_bytes": len(answer.content), "labels": len(LABELS)},
        switches=dict(FAST),
        failures=failures[:3],
        **environment("ray", "fastapi", "starlette", "uvicorn"),
    )


def _config(folder: str) -> ServingConfig:
    return ServingConfig(bundle_uri="unused", task_store_uri=folder, allow_anonymous=True, ingress=SCALE)


def _ratio(sides: Mapping[str, Side]) -> float:
    """The median over the rounds, of which each measures both sides one after the other."""
    pairs = zip(sides["ours"].loads, sides["echo"].loads, strict=True)
    return statistics.median(ours.rate / echo.rate for ours, echo in pairs)


def _p50_ms(side: Side) -> float:
    return statistics.median(load.percentile_ms(0.5) for load in side.loads)
