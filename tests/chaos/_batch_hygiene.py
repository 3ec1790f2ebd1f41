"""What `batch_hygiene` runs, once the switches are set."""

import asyncio
import dataclasses
import logging
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray.serve.exceptions import RequestCancelledError

from serving.config import BatchingConfig, ServingConfig
from serving.messages import Classified, Refused
from serving.task_store import TaskStore
from tests.benchmarks._serving_load import (
    ImageEncoderClient,
    MeasuredImageEncoder,
    StoredTask,
    image_encoder,
    pictures,
    serving,
    store_tasks,
)
from tests.result import chaos_result, environment, measure
from training.bundle import load_bundle
from training.shipped import shipped_model_folder

NAME = "batch_hygiene"
CONCURRENCY = 64
NUM_TASKS, NUM_BROKEN, NUM_PICTURES, NUM_TENANTS = 12, 3, 30, 4
TOP_K = 10
CANCELLED_SHARE, POISON_SHARE = 0.2, 0.05
LATEST_CANCEL_S = 0.3
"""Longer than most answers take, so that some calls are cancelled in each of their stages, and some too late."""
HANGS_AFTER_S = 60.0
TOLERANCE = 1e-5

Kind = Literal["good", "unreadable", "breaks"]
Scores = dict[str, tuple[float, float]]


class BreakableImageEncoder(MeasuredImageEncoder):
    """The deployment, with tasks that can be broken: the forward pass then raises on each of their pictures."""

    async def break_task(self, specialization_id: str) -> None:
        resident = self._shared.resident
        task = resident.get(specialization_id)
        assert task is not None
        resident.put(specialization_id, dataclasses.replace(task, parameters=task.parameters[:-1]))

    async def state(self) -> dict[str, int]:
        return {"process": os.getpid(), "waiting": self._shared.batcher.num_waiting}


@dataclass(frozen=True)
class Request:
    kind: Kind
    task: int
    picture: int
    tenant: str
    cancel_after_s: float | None


@dataclass
class Tally:
    """What became of the requests."""

    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    largest_difference: float = 0.0
    largest_batch: int = 0


def draw(rng: random.Random) -> Request:
    kind: Kind = "good"
    if rng.random() < POISON_SHARE:
        kind = rng.choice(("unreadable", "breaks"))
    return Request(
        kind=kind,
        task=NUM_TASKS + rng.randrange(NUM_BROKEN) if kind == "breaks" else rng.randrange(NUM_TASKS),
        picture=rng.randrange(NUM_PICTURES),
        tenant=f"tenant-{rng.randrange(NUM_TENANTS)}",
        cancel_after_s=rng.uniform(0, LATEST_CANCEL_S) if rng.random() < CANCELLED_SHARE else None,
    )


def scores_of(answer: Any) -> Scores:
    assert isinstance(answer, list) and isinstance(answer[0], Classified), answer
    return {one.label: (one.score, one.match) for one in answer[0].predictions}


def difference(found: Scores, expected: Scores) -> float:
    if found.keys() != expected.keys():
        return float("inf")
    return max(abs(a - b) for label in expected for a, b in zip(found[label], expected[label], strict=True))


class Strike:
    """Makes the requests of one run and judges what comes back."""

    def __init__(self, client: ImageEncoderClient, tasks: Sequence[StoredTask]) -> None:
        self._client, self._tasks = client, tasks
        self._pictures = pictures()[:NUM_PICTURES]
        self._alone: dict[tuple[int, int], Scores] = {}
        self.tally = Tally()

    async def ask_alone(self) -> None:
        """Each picture under each task, one at a time."""
        for task in range(NUM_TASKS):
            for picture in range(NUM_PICTURES):
                answer = await self._client.classify(self._tasks[task], self._pictures[picture], top_k=TOP_K)
                self._alone[task, picture] = scores_of(answer)

    async def run(self, requests: Sequence[Request]) -> None:
        numbers = iter(range(len(requests)))

        async def caller() -> None:
            for number in numbers:
                await self._one(number, requests[number])

        await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))

    async def _one(self, number: int, request: Request) -> None:
        data = self._pictures[request.picture]
        if request.kind == "unreadable":
            data = data[: len(data) // 2] if number % 2 else b"GIF89a" + data
        response = self._client.classify(self._tasks[request.task], data, top_k=TOP_K, tenant=request.tenant)
        waiting = asyncio.ensure_future(_answer(response))
        if request.cancel_after_s is not None:
            await asyncio.wait([waiting], timeout=request.cancel_after_s)
            if not waiting.done():
                response.cancel()
        await asyncio.wait([waiting], timeout=HANGS_AFTER_S)
        if not waiting.done():
            self._problem("hang", f"request {number}, {request}: no end after {HANGS_AFTER_S:g} s")
            waiting.cancel()
            return
        self._judge(number, request, waiting.result())

    def _judge(self, number: int, request: Request, answer: Any) -> None:
        tally = self.tally
        if isinstance(answer, RequestCancelledError) and request.cancel_after_s is not None:
            tally.outcomes["cancelled"] += 1
        elif isinstance(answer, BaseException | Refused):
            self._problem("error", f"request {number}, {request}: {answer!r}")
        elif request.kind != "good":
            expected = (500,) if request.kind == "breaks" else (415, 422)
            if isinstance(answer[0], Refused) and answer[0].status in expected:
                tally.outcomes[f"refused_{request.kind}"] += 1
            else:
                self._problem("poison_answered", f"request {number}, {request}: {answer[0]!r}")
        elif not isinstance(answer[0], Classified):
            self._problem("error", f"request {number}, {request}: {answer[0]!r}")
        else:
            found = difference(scores_of(answer), self._alone[request.task, request.picture])
            tally.largest_difference = max(tally.largest_difference, found)
            tally.largest_batch = max(tally.largest_batch, answer[0].batch_size)
            if found > TOLERANCE:
                self._problem("unlike_alone", f"request {number}, {request}: differs by {found:g}")
            else:
                tally.outcomes["answered"] += 1

    def _problem(self, word: str, text: str) -> None:
        self.tally.outcomes[word] += 1
        self.tally.problems.append(f"{word}: {text}")


async def _answer(response: Any) -> Any:
    """The answer, or the exception in its place."""
    try:
        return await response
    except (Exception, asyncio.CancelledError) as error:
        return error


async def strike(*, count: int, seed: int) -> Tally:
    """Make so many requests of a replica of its own."""
    folder, rng = shipped_model_folder(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="hyperclip-hygiene-") as store_uri:
        bundle = load_bundle(folder)
        tasks = store_tasks(bundle, TaskStore(store_uri), count=NUM_TASKS + NUM_BROKEN, seed=seed)
        config = ServingConfig(
            bundle_uri=str(folder), task_store_uri=store_uri, batching=BatchingConfig(batch_wait_timeout_s=0.005)
        )
        async with serving({NAME: image_encoder(config, max_ongoing=CONCURRENCY, deployment=BreakableImageEncoder)}) as handles:
            handle, client = handles[NAME], ImageEncoderClient(handles[NAME], bundle.digest)
            run = Strike(client, tasks)
            await run.ask_alone()
            for task in tasks[NUM_TASKS:]:
                await client.classify(task, pictures()[0])
                await handle.break_task.remote(task.specialization_id)
            before = await handle.state.remote()
            await run.run([draw(rng) for _ in range(count)])
            after = await handle.state.remote()
            if after != {"process": before["process"], "waiting": 0}:
                run.tally.problems.append(f"the replica is not as before: {before} -> {after}")
            await run.run([Request("good", 0, picture, "tenant-0", None) for picture in range(NUM_PICTURES)])
        return run.tally


def measured(*, count: int, seed: int) -> int:
    logging.disable(logging.WARNING)
    tally = asyncio.run(strike(count=count, seed=seed))
    for problem in tally.problems[:50]:
        print(problem, file=sys.stderr)
    found = tally.outcomes
    return chaos_result(
        NAME,
        injected=found["cancelled"] + found["refused_unreadable"] + found["refused_breaks"],
        lost=found["error"] + found["hang"],
        failed=len(tally.problems) - found["error"] - found["hang"],
        measures={
            "hangs": measure(found["hang"], goal=("<=", 0)),
            "errors_for_others": measure(found["error"], goal=("<=", 0)),
            "unlike_alone": measure(found["unlike_alone"], goal=("<=", 0)),
            "largest_difference": measure(tally.largest_difference, goal=("<=", TOLERANCE)),
            "largest_batch": measure(tally.largest_batch, goal=(">=", 2)),
            **{name: measure(found[name]) for name in ("answered", "cancelled", "refused_unreadable", "refused_breaks")},
        },
        requests=count,
        problems=tally.problems[:50],
        seed=seed,
        **environment("ray", "torch"),
    )
