"""What `fuzz` does: a service, calls that nobody should make, and a look at what is left of the service."""

import asyncio
import os
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from infra.cluster import ClusterConfig, connected
from serving.config import DeploymentScale, ServingConfig
from serving.launch import running
from tests.chaos._fuzz_calls import Calls
from tests.chaos._fuzz_http import Answer, Call, Connection, DroppedError
from tests.chaos._fuzz_judge import PROBLEM, fault_of, is_shed
from tests.chaos._fuzz_openapi import SchemaCalls
from tests.chaos._fuzz_processes import ServiceProcesses
from tests.chaos._processes import MARK
from tests.result import chaos_result, environment, measure
from tests.unit.serving_helpers import make_bundle, picture

AT_ONCE = 16
SCHEMA_SHARE = 0.1
GOOD_EVERY = 50
"""Calls, after which a good one is made."""
LABELS = [f"good {number}" for number in range(5)]
SMALL = DeploymentScale(num_cpus=0.1)
SHOWN = 10
CAPS_MIB = {"Ingress": 1024, "ImageEncoder": 2048, "Hypernetwork": 1024, "ProxyActor": 512, "ServeController": 256}
"""How much each process of the service may grow at its peak."""


@dataclass
class Found:
    """What came of it."""

    calls: Counter[str] = field(default_factory=Counter)
    """By what was odd about them, up to the first colon, and status."""
    shed: Counter[str] = field(default_factory=Counter)
    """Refused for a while, with Retry-After, by status and what was said."""
    good_calls: int = 0
    faults: list[str] = field(default_factory=list)
    """Answers that no call should get."""
    against_document: Counter[str] = field(default_factory=Counter)
    """Answers that the OpenAPI document does not have, by operation."""


class Fuzz:
    """Makes the calls and judges the answers; what fails is kept as it went over the wire."""

    def __init__(self, base_url: str, *, seed: int, keep: Path | None) -> None:
        self._base_url, self._seed, self._keep = base_url, seed, keep
        self._port = int(base_url.rpartition(":")[2])
        made = httpx.post(f"{base_url}/v1/tasks", json={"labels": LABELS}, timeout=60, trust_env=False).raise_for_status()
        self._task = made.json()["task_id"]
        target = f"/v1/tasks/{self._task}/classify".encode()
        self._good = [
            Call("good", "POST", target, ((b"content-type", b"image/png"),), picture(number), num_pictures=1)
            for number in range(3)
        ]
        self._expected = [asyncio.run(self._scores_alone(call)) for call in self._good]
        self.found = Found()

    # ---- mutated pictures, odd texts, broken forms --------------------------------------------------------------------

    async def run(self, count: int) -> None:
        """So many calls, some at once, each connection kept as long as it lasts."""
        calls, numbers = Calls(self._seed, self._task), iter(range(count))
        started = time.monotonic()

        async def one_after_the_other() -> None:
            connection = Connection(self._port)
            for number in numbers:
                await self._one(connection, calls.draw(number), number)
                if number % GOOD_EVERY == 0:
                    await self._check_good(connection, number)
                if number % 2000 == 0:
                    done = f"{number:,} of {count:,} calls, {time.monotonic() - started:.0f} s, {len(self.found.faults)} faults"
                    print(f"  {done}", file=sys.stderr, flush=True)
            connection.close()

        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))

    async def _one(self, connection: Connection, call: Call, number: int) -> None:
        answer = await self._ask(connection, call, number)
        if answer is None or answer.status != 200 or call.method != "POST":  # HEAD has no body
            return
        if call.target in (b"/v1/tasks", b"/v1/classify"):
            await self._use(connection, answer, number)

    async def _use(self, connection: Connection, answer: Answer, number: int) -> None:
        """Odd labels that were taken go the whole way: classify with them, look at them, and delete them."""
        task = answer.json().get("task_id")
        if task is None or task == self._task:
            return
        address = f"/v1/tasks/{task}".encode()
        for call in (
            Call("made: classify", "POST", address + b"/classify", body=self._good[0].body, num_pictures=1),
            Call("made: get", "GET", address),
            Call("made: delete", "DELETE", address),
        ):
            answered = await self._ask(connection, call, number)
            # 404: somebody else made the same task, and has deleted it
            if answered is not None and answered.status not in (200, 204, 404) and not is_shed(answered):
                self._fault(
                    call.kind, number, f"answered {answered.status} for a task that was made", call.on_the_wire(), answered
                )

    async def _ask(self, connection: Connection, call: Call, number: int) -> Answer | None:
        try:
            answer = await connection.ask(call)
        except DroppedError as error:
            self._fault(call.kind, number, f"no answer: {error}", call.on_the_wire(), None)
            return None
        self._count(call.kind, answer)
        num_pictures = call.num_pictures if answer.status == 200 else 0
        if fault := fault_of(answer, has_body=call.method != "HEAD", num_pictures=num_pictures):
            self._fault(call.kind, number, fault, call.on_the_wire(), answer)
        return answer

    async def _check_good(self, connection: Connection, number: int) -> None:
        """A good call among all these is answered as it was before."""
        place = number // GOOD_EVERY % len(self._good)
        self.found.good_calls += 1
        answer = await self._ask(connection, self._good[place], number)
        if answer is not None and answer.status == 200:
            scores = _scores(answer)
            expected = self._expected[place]
            if scores.keys() == expected.keys() and all(abs(scores[label] - expected[label]) <= 1e-5 for label in scores):
                return
        self._fault("good", number, f"a good call was not answered as before, after call {number}", b"", answer)

    async def _scores_alone(self, call: Call) -> dict[str, float]:
        connection = Connection(self._port)
        scores = _scores(await connection.ask(call))
        connection.close()
        return scores

    # ---- the OpenAPI document -----------------------------------------------------------------------------------------

    def run_schema(self, count: int) -> int:
        """About so many calls from the document; returns how many there were."""
        total = 0
        for total, asked in enumerate(SchemaCalls(self._base_url, labels=[*LABELS, "schema"], seed=self._seed).run(count), 1):
            wire = b"" if asked.sent is None else _wire(asked.sent)
            if asked.answer is None:
                self._fault(asked.name, total, f"no answer: {asked.against}", wire, None)
                continue
            self._count(asked.name, asked.answer)
            if asked.against and not is_shed(asked.answer):
                self.found.against_document[f"{asked.name}: {asked.answer.status} {asked.against}"] += 1
            if fault := fault_of(asked.answer, has_body=asked.has_body):
                self._fault(asked.name, total, fault, wire, asked.answer)
        return total

    # ---- the books ----------------------------------------------------------------------------------------------------

    def _count(self, kind: str, answer: Answer) -> None:
        self.found.calls[f"{kind.partition(':')[0]}: {answer.status}"] += 1
        if is_shed(answer):
            said = answer.json()["type"] if answer.media_type == PROBLEM else "by Ray Serve's proxy"
            self.found.shed[f"{answer.status} {said}"] += 1

    def _fault(self, kind: str, number: int, text: str, wire: bytes, answer: Answer | None) -> None:
        said = "" if answer is None else f" {answer.status} {answer.body[:200]!r}"
        self.found.faults.append(f"call {number} ({kind}): {text}{said}")
        if len(self.found.faults) <= SHOWN:
            print(f"  {self.found.faults[-1]}", file=sys.stderr, flush=True)
        if self._keep is not None:
            name = re.sub(r"[^a-z0-9]+", "-", f"{number:06d} {kind}".lower())
            (self._keep / f"{name}.http").write_bytes(wire)
            (self._keep / f"{name}.txt").write_text(f"{self.found.faults[-1]}\n")


def _wire(sent: Any) -> bytes:
    """A call of `requests`, much as it went out."""
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.headers.items())
    body = sent.body if isinstance(sent.body, bytes) else str(sent.body or "").encode(errors="surrogatepass")
    return f"{sent.method} {sent.path_url} HTTP/1.1\r\n{head}\r\n".encode(errors="surrogatepass") + body


def _scores(answer: Answer) -> dict[str, float]:
    predictions = answer.json()["results"][0]["predictions"]
    return {one["label"]: one["score"] for one in predictions}


def measured(*, count: int, seed: int, keep: Path | None) -> int:
    """Make so many calls, print the result, return the exit status."""
    mark = os.environ[MARK] = secrets.token_hex(8)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hyperclip-fuzz-") as temporary:
        folder = Path(temporary)
        config = ServingConfig(
            bundle_uri=str(make_bundle(folder / "bundle")), task_store_uri=str(folder / "tasks"), port=0, log_level="warning",
            ingress=SMALL.rebuilt(max_ongoing_requests=256), hypernetwork=SMALL, image_encoder=SMALL,
        )  # fmt: skip
        with connected(ClusterConfig(num_cpus=2)), running(config) as base_url:
            fuzz = Fuzz(base_url, seed=seed, keep=keep)
            processes = ServiceProcesses(mark)
            num_of_schema = fuzz.run_schema(int(count * SCHEMA_SHARE))
            asyncio.run(fuzz.run(count - num_of_schema))
            gone, memory = processes.gone(mark), processes.memory()
    found = fuzz.found
    over = [name for name, used in memory.items() if used.grown_mib > CAPS_MIB[used.kind]]
    return chaos_result(
        "fuzz",
        injected=found.calls.total() - found.good_calls,
        lost=len(gone),
        failed=len(found.faults) + len(over),
        measures={
            "answers_that_are_faults": measure(len(found.faults), goal=("<=", 0)),
            "answers_unlike_the_document": measure(found.against_document.total(), goal=("<=", 0)),
            "processes_gone": measure(len(gone), goal=("<=", 0)),
            "processes_over_their_memory": measure(len(over), goal=("<=", 0)),
            "shed": measure(found.shed.total()),
            "good_calls_between": measure(found.good_calls),
        },
        memory_mib={name: {**used.shown(), "cap_of_growth": CAPS_MIB[used.kind]} for name, used in memory.items()},
        answers=dict(sorted(found.calls.items())),
        shed=dict(found.shed),
        faults=found.faults[:SHOWN],
        unlike_the_document=dict(found.against_document.most_common(SHOWN)),
        gone=gone,
        seed=seed,
        **environment("ray", "fastapi", "uvicorn", "pillow", "schemathesis"),
    )
