"""Fifty tenants with the same names for their classes ask for each other's tasks: nobody reads, uses or deletes another's.

Ids of others are known or guessed, and go to every route that takes one; some callers forge the name of a tenant or another's
request id, send two keys, cut keys, keys of nobody or none.  There are two ingress replicas, which both have had tasks of all
tenants in their memory.  Every class list has a name that only its owner uses: an answer that shows it to anybody else counts
as a read, and so does any answer to a foreign id that differs from the one to an id that never was.

python -m tests.chaos.tenants [--quick | --count N] [--seed S]
"""

import asyncio
import logging
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import httpx

from infra.cluster import ClusterConfig, connected
from serving.config import DeploymentScale, ServingConfig
from serving.launch import running
from serving.tenants import TenantConfig, key_hash, new_key
from tests.result import chaos_arguments, chaos_result, environment, measure
from tests.unit.serving_helpers import make_bundle, picture

TENANTS = 50
TASKS_EACH = 2
AT_ONCE = 16
COMMON = ["cat", "dog", "horse", "house"]
PICTURE = picture()
SMALL = DeploymentScale(num_cpus=0.1)
LINES = {"accept": "application/x-ndjson"}
FORM = {"files": [("images", ("0.png", PICTURE)), ("images", ("1.png", PICTURE))]}
BY_ID: dict[str, tuple[str, str, dict[str, Any]]] = {
    "get": ("GET", "", {}),
    "delete": ("DELETE", "", {}),
    "export": ("GET", "/export", {}),
    "classify": ("POST", "/classify?top_k=10", {"content": PICTURE}),
    "neutral": ("POST", "/classify?top_k=10&parameters=neutral", {"content": PICTURE}),
    "form": ("POST", "/classify?top_k=10", FORM),
    "stream": ("POST", "/classify?top_k=10", FORM | {"headers": LINES}),
}
"""Every route with a task id: method, what follows the id, what is sent."""
SHOWS_LABELS = frozenset(BY_ID) - {"delete", "export"}
Kind = Literal["own", "other", "guess", "no key"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass
class Tenant:
    """One customer; `mark` is a class name that nobody else has."""

    name: str
    key: str
    mark: str
    tasks: list[str] = field(default_factory=list)

    def labels(self, number: int) -> list[str]:
        return [*COMMON, self.mark, f"thing {number}"]


@dataclass
class Found:
    """What came of it."""

    attempts: Counter[str] = field(default_factory=Counter)
    """By kind and call."""
    statuses: Counter[str] = field(default_factory=Counter)
    """By kind and status."""
    reads: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def check(self, holds: bool, text: str, answer: httpx.Response) -> None:
        if not holds:
            self.wrong.append(f"{text}: {answer.status_code} {answer.content[:150]!r}")


class Play:
    """All calls, some at once."""

    def __init__(self, http: httpx.AsyncClient, tenants: list[Tenant], seed: int) -> None:
        self._http, self._tenants, self._rng = http, tenants, random.Random(seed)
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._never_was = b""
        self.found = Found()

    async def run(self, count: int) -> None:
        for tenant in self._tenants:
            for number in range(TASKS_EACH):
                answer = await self._make(tenant, number)
                tenant.tasks.append(answer.json()["task_id"])
        self._never_was = (await self._http.get(f"/v1/tasks/{'a' * 52}", headers=_bearer(self._tenants[0].key))).content
        await asyncio.gather(*(self._one() for _ in range(count)))
        for tenant in self._tenants:  # nothing of anybody has gone
            for task in tenant.tasks:
                answer = await self._http.get(f"/v1/tasks/{task}", headers=_bearer(tenant.key))
                self.found.check(answer.status_code == 200 and tenant.mark in answer.text, "at the end", answer)

    async def _one(self) -> None:
        kind = self._rng.choices(KINDS, (3, 5, 1, 2))[0]
        caller, owner = self._rng.sample(self._tenants, 2)
        if kind == "own":
            owner = caller
        number = self._rng.randrange(TASKS_EACH)
        task = owner.tasks[number] if kind != "guess" else _guess(self._rng, owner.tasks[number])
        headers = self._headers(kind, caller, owner)
        call = self._rng.choice((*BY_ID, "list", "create"))
        if (kind, call) == ("own", "export") and self._rng.random() < 0.9:
            call = "get"  # after each deletion a package is made anew: tenths of a second, where others take milliseconds
        async with self._gate:
            answer = await self._send(call, task, caller, number, headers)
            self._judge(kind, call, caller, owner, answer)
            if kind == "own" and call == "delete":  # for those who come after; the same content has the same id
                await self._make(owner, number)
        if (done := self.found.attempts.total()) % 1000 == 0:
            print(
                f"  {done:,} calls, {len(self.found.reads)} reads, {len(self.found.wrong)} wrong", file=sys.stderr, flush=True
            )

    async def _send(
        self, call: str, task: str, caller: Tenant, number: int, headers: list[tuple[bytes, bytes]]
    ) -> httpx.Response:
        if call == "list":
            return await self._http.get("/v1/tasks", headers=headers)
        if call == "create":
            return await self._http.post("/v1/tasks", headers=headers, json={"labels": caller.labels(number)})
        method, rest, content = BY_ID[call]
        extra = [(name.encode(), value.encode()) for name, value in content.get("headers", {}).items()]
        sent = {name: value for name, value in content.items() if name != "headers"}
        return await self._http.request(method, f"/v1/tasks/{task}{rest}", headers=headers + extra, **sent)

    async def _make(self, tenant: Tenant, number: int) -> httpx.Response:
        answer = await self._http.post("/v1/tasks", headers=_bearer(tenant.key), json={"labels": tenant.labels(number)})
        return answer.raise_for_status()

    def _headers(self, kind: Kind, caller: Tenant, owner: Tenant) -> list[tuple[bytes, bytes]]:
        """Those of the caller, now and then with something of the owner's beside them that must not count."""
        if kind == "no key":
            return _bad_keys(self._rng, caller)
        mine = _bearer(caller.key)
        beside = [
            [],
            [],
            [(b"x-api-key", owner.key.encode())],  # the bearer goes first
            _bearer(owner.key),  # a second one
            [(b"x-tenant", owner.name.encode()), (b"x-forwarded-user", owner.name.encode())],
            [(b"x-request-id", owner.mark.replace(" ", "-").encode())],
            [(b"cookie", f"tenant={owner.name}; key={owner.key}".encode())],
        ]
        return mine + self._rng.choice(beside)

    def _judge(self, kind: Kind, call: str, caller: Tenant, owner: Tenant, answer: httpx.Response) -> None:
        """Nothing of another tenant is in the answer, and it has the status that it should."""
        found, status, text = self.found, answer.status_code, f"{call} of {owner.name} by {caller.name} ({kind})"
        found.attempts[f"{kind}: {call}"] += 1
        found.statuses[f"{kind}: {status}"] += 1
        for tenant in self._tenants:
            if tenant.mark.encode() in answer.content and (tenant is not caller or kind == "no key"):
                found.reads.append(f"{text} shows {tenant.name}")
        if kind == "no key":
            found.check(status == 401 and "www-authenticate" in answer.headers, text, answer)
        elif call == "list":
            ids = {one["task_id"] for one in answer.json()["tasks"]} if status == 200 else set()
            if ids - set(caller.tasks):
                found.reads.append(f"{text} shows foreign ids")
            found.check(status == 200, text, answer)
        elif call == "create":
            found.check(status == 200 and answer.json()["task_id"] in caller.tasks, text, answer)
        elif kind == "own":  # 404: deleted a moment ago
            found.check(status in ((204, 404) if call == "delete" else (200, 404)), text, answer)
            found.check(status != 200 or call not in SHOWS_LABELS or caller.mark.encode() in answer.content, text, answer)
        elif status != 404 or answer.content != self._never_was:
            found.reads.append(f"{text}: {status} {answer.content[:150]!r}")


def _bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


def _guess(rng: random.Random, task: str) -> str:
    """An id like the given one."""
    place = rng.randrange(len(task))
    return rng.choice(
        (
            "".join(rng.choices("abcdefghijklmnopqrstuvwxyz234567", k=len(task))),
            task[:place] + ("a" if task[place] != "a" else "b") + task[place + 1 :],
            task.upper(),
            task[:-1],
            f"{task}a",
            f"{task}%20",
            f"{task}%00",
            "*",
        )
    )


def _bad_keys(rng: random.Random, caller: Tenant) -> list[tuple[bytes, bytes]]:
    """A key that is nobody's, or none, or a good one after a bad one."""
    good = caller.key.encode()
    bad = rng.choice(
        (good[:-1], good + b"a", good.upper(), caller.name.encode(), key_hash(good).encode(), b"x" * 5000, b"\xff" * 43, b"a")
    )
    return rng.choice(
        (
            [],
            [(b"authorization", b"Bearer " + bad)],
            [(b"authorization", b"Basic " + good)],
            [(b"authorization", b"Bearer")],
            [(b"x-api-key", bad)],
            [(b"authorization", b"Bearer " + bad), (b"x-api-key", good)],
            [(b"authorization", b"Bearer " + bad), (b"authorization", b"Bearer " + good)],
            [(b"cookie", b"key=" + good), (b"x-tenant", caller.name.encode())],
        )
    )


async def _play(url: str, tenants: list[Tenant], *, count: int, seed: int) -> Found:
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        play = Play(http, tenants, seed)
        await play.run(count)
    return play.found


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=10_000, quick_count=400)
    tenants = [Tenant(f"tenant-{n}", new_key()[0], f"mark {n:03d} of {arguments.seed}") for n in range(TENANTS)]
    configured = tuple(
        TenantConfig(name=one.name, key_sha256=(key_hash(one.key.encode()),), max_in_flight=2 * AT_ONCE) for one in tenants
    )
    with tempfile.TemporaryDirectory(prefix="hyperclip-tenants-") as temporary:
        folder = Path(temporary)
        config = ServingConfig(
            bundle_uri=str(make_bundle(folder / "bundle")), task_store_uri=str(folder / "tasks"), port=0, tenants=configured,
            hypernetwork=SMALL, image_encoder=SMALL, log_level="warning",
            ingress=SMALL.rebuilt(min_replicas=2, max_replicas=2, max_ongoing_requests=256),
        )  # fmt: skip
        logging.disable(logging.WARNING)
        with connected(ClusterConfig(num_cpus=2)), running(config) as url:
            found = asyncio.run(_play(url, tenants, count=arguments.count, seed=arguments.seed))
    for text in (found.reads + found.wrong)[:10]:
        print(text, file=sys.stderr)
    attempts = {kind: sum(n for name, n in found.attempts.items() if name.startswith(f"{kind}:")) for kind in KINDS}
    return chaos_result(
        "tenants",
        injected=sum(attempts.values()) - attempts["own"],
        lost=len(found.reads),
        failed=len(found.wrong),
        measures={
            "reads_across_tenants": measure(len(found.reads), goal=("<=", 0)),
            "wrong_answers": measure(len(found.wrong), goal=("<=", 0)),
            "requests": measure(sum(attempts.values())),
        },
        tenants=TENANTS,
        attempts=attempts,
        statuses=dict(sorted(found.statuses.items())),
        seed=arguments.seed,
        **environment("ray", "fastapi"),
    )


if __name__ == "__main__":
    raise SystemExit(main())
