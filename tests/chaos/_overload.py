"""What `overload` does: a service with tenants, its capacity, a calm, the overload, and the time after it."""

import asyncio
import itertools
import os
import re
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.cluster import ClusterConfig, connected
from serving.client import ServingClient
from serving.config import ServingConfig
from serving.launch import running
from serving.tenants import TenantConfig, key_hash, new_key
from tests.chaos._processes import MARK, processes_of
from tests.http_load import closed_load, request_bytes
from tests.open_load import Answer, OpenLoad, offer
from tests.result import chaos_result, environment, measure
from tests.unit.serving_helpers import make_bundle, picture

TIMES_CAPACITY = 5.0
LIGHT = 0.3
"""Of capacity, before and after."""
NUM_TENANTS = 8
CALLERS_EACH = 4
"""In the closed loop: 32 in all."""
MAX_CONNECTIONS = 512
GUEST_SHARE = 0.025
"""Of capacity: a quarter of what each of nine could have, on a fast machine and on a slow one."""
HEALTH_RATE = 2.0
LABELS = [f"a class with a name {number}" for number in range(10)]
WATCHED_AFTER_S = 10.0
SETTLED_S = 1.0
"""After the overload, a light load is served as before when it is for so long."""
MAX_GROWTH_MIB = 256.0
PART_OF_SERVICE = re.compile(r"ray::(ServeReplica|ProxyActor)")


@dataclass
class Callers:
    """Prepared requests."""

    port: int
    of_tenants: list[bytes]
    of_guest: bytes
    health: bytes = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"

    async def saturate(self, seconds: float) -> tuple[float, list[float]]:
        """Requests a second and latencies of the closed loop."""
        loads = await asyncio.gather(
            *(
                closed_load(self.port, itertools.repeat(one), concurrency=CALLERS_EACH, seconds=seconds)
                for one in self.of_tenants
            )
        )
        failures = [failure for load in loads for failure in load.failures]
        assert not failures, f"refused at capacity: {failures[:3]}"
        latencies = [latency for load in loads for latency in load.latencies_s]
        return len(latencies) / seconds, latencies

    async def light(self, rate: float, seconds: float, seed: int) -> OpenLoad:
        return await offer(self.port, self.of_tenants, rate=rate, seconds=seconds, max_connections=64, seed=seed)

    async def overload(self, rate: float, seconds: float, seed: int) -> OpenLoad:
        return await offer(self.port, self.of_tenants, rate=rate, seconds=seconds, max_connections=MAX_CONNECTIONS, seed=seed)

    async def guest(self, rate: float, seconds: float, seed: int) -> OpenLoad:
        return await offer(self.port, [self.of_guest], rate=rate, seconds=seconds, max_connections=16, seed=seed)

    async def ask_health(self, seconds: float, seed: int) -> OpenLoad:
        return await offer(self.port, [self.health], rate=HEALTH_RATE, seconds=seconds, max_connections=16, seed=seed)


@dataclass
class Found:
    """All phases."""

    capacity: float = 0.0
    at_capacity_s: list[float] = field(default_factory=list)
    calm: OpenLoad = field(default_factory=OpenLoad)
    overload: OpenLoad = field(default_factory=OpenLoad)
    guest: OpenLoad = field(default_factory=OpenLoad)
    health: OpenLoad = field(default_factory=OpenLoad)
    after: OpenLoad = field(default_factory=OpenLoad)
    memory_mib: list[float] = field(default_factory=list)
    """Of proxy and replicas together, once a second, the first before the overload."""


async def play(callers: Callers, mark: str, *, seconds: float, quick: bool, seed: int) -> Found:
    found = Found()
    full_s, calm_s = (4.0, 5.0) if quick else (15.0, 20.0)
    await callers.saturate(3.0)  # until every process is warm
    found.capacity, found.at_capacity_s = await callers.saturate(full_s)
    _say(f"capacity {found.capacity:.0f}/s, p99 {_p(found.at_capacity_s, 0.99):.3f} s")
    light = LIGHT * found.capacity
    found.calm = await callers.light(light, calm_s, seed)
    _say(f"at {light:.0f}/s: p99 {_p(_accepted_s(found.calm), 0.99):.3f} s")

    async def then_light() -> OpenLoad:
        """At once: what the overload has left waiting is part of it."""
        await asyncio.sleep(seconds)
        return await callers.light(light, WATCHED_AFTER_S, seed + 1)

    watching = asyncio.create_task(_watch_memory(mark, found.memory_mib))
    found.overload, found.guest, found.health, found.after = await asyncio.gather(
        callers.overload(TIMES_CAPACITY * found.capacity, seconds, seed + 2),
        callers.guest(GUEST_SHARE * found.capacity, seconds, seed + 3),
        callers.ask_health(seconds, seed + 4),
        then_light(),
    )
    watching.cancel()
    again, latencies = await callers.saturate(full_s)
    found.at_capacity_s += latencies
    _say(f"capacity afterwards {again:.0f}/s, p99 {_p(latencies, 0.99):.3f} s")
    return found


def measured(*, seconds: float, quick: bool, seed: int) -> int:
    """Play it, print the result, return the exit status."""
    mark = os.environ[MARK] = secrets.token_hex(8)
    keys = {name: new_key()[0] for name in (*(f"tenant-{number}" for number in range(NUM_TENANTS)), "guest")}
    tenants = tuple(TenantConfig(name=name, key_sha256=(key_hash(key.encode()),)) for name, key in keys.items())
    with tempfile.TemporaryDirectory(prefix="hyperclip-overload-") as temporary:
        folder = Path(temporary)
        config = ServingConfig(
            bundle_uri=str(make_bundle(folder / "bundle")), task_store_uri=str(folder / "tasks"), port=0, tenants=tenants
        )
        with connected(ClusterConfig(num_cpus=2)), running(config) as base_url:
            requests = [_request(base_url, key, picture(number)) for number, key in enumerate(keys.values())]
            callers = Callers(int(base_url.rpartition(":")[2]), requests[:-1], requests[-1])
            found = asyncio.run(play(callers, mark, seconds=seconds, quick=quick, seed=seed))
    return _result(found, seed=seed)


def _result(found: Found, *, seed: int) -> int:
    loads = {"overload": found.overload, "guest": found.guest, "after": found.after, "calm": found.calm}
    wrong = [f"{name}: {text}" for name, load in loads.items() for text in _wrong(load.answers)]
    wrong += [f"healthz: {answer.head[:60]!r}" for answer in found.health.answers if answer.status != 200]
    broken = [text for load in (*loads.values(), found.health) for text in load.broken]
    for text in (broken + wrong)[:10]:
        print(text, file=sys.stderr)
    baseline, accepted = _p(found.at_capacity_s, 0.99), _accepted_s(found.overload)
    refused = [answer for answer in found.overload.answers if answer.status != 200]
    guests = _accepted_s(found.guest)
    return chaos_result(
        "overload",
        injected=len(refused),
        lost=len(broken),
        failed=len(wrong),
        measures={
            "offered_times_capacity": measure(found.overload.offered_per_s / found.capacity, goal=(">=", 4.5)),
            "accepted_p99_times_baseline": measure(_p(accepted, 0.99) / baseline, goal=("<=", 2)),
            "recovered_after": measure(_recovered_s(found), goal=("<=", 5), unit="s"),
            "guest_answered": measure(len(guests) / (found.guest.num_sent + found.guest.num_held_back), goal=(">=", 0.9)),
            "memory_growth": measure(max(found.memory_mib) - found.memory_mib[0], goal=("<=", MAX_GROWTH_MIB), unit="MiB"),
            "capacity": measure(found.capacity, unit="1/s"),
            "accepted": measure(len(accepted) / found.overload.seconds, unit="1/s"),
            "refused": measure(len(refused) / found.overload.seconds, unit="1/s"),
            "baseline_p99": measure(baseline, unit="s"),
            "accepted_p99": measure(_p(accepted, 0.99), unit="s"),
            "calm_p99": measure(_p(_accepted_s(found.calm), 0.99), unit="s"),
            "refused_p99": measure(_p([answer.seconds for answer in refused], 0.99), unit="s"),
            "guest_p99": measure(_p(guests, 0.99), unit="s"),
            "healthz_p99": measure(_p([answer.seconds for answer in found.health.answers], 0.99), unit="s"),
        },
        seconds=round(found.overload.seconds, 1),
        statuses=dict(Counter(str(answer.status) for answer in found.overload.answers)),
        not_sent=found.overload.num_held_back,
        memory_mib={"before": round(found.memory_mib[0]), "last": round(found.memory_mib[-1])},
        wrong=wrong[:3],
        seed=seed,
        **environment("ray", "uvicorn"),
    )


def _request(base_url: str, key: str, image: bytes) -> bytes:
    """One picture under a task of the tenant's own, which is made here."""
    with ServingClient(base_url, api_key=key) as client:
        task = client.create_task(LABELS).task_id
    return request_bytes(
        f"/v1/tasks/{task}/classify", image, content_type="image/png", headers={"authorization": f"Bearer {key}"}
    )


def _wrong(answers: Iterable[Answer]) -> list[str]:
    """Answers that are neither scores nor a refusal as promised."""
    found = []
    for answer in answers:
        told = answer.header("retry-after") or ""
        shed = answer.status in (429, 503) and told.isdecimal() and answer.header("content-type") == "application/problem+json"
        if not shed and (answer.status != 200 or b'"predictions":[{' not in answer.body):
            found.append(f"{answer.head!r} {answer.body[:100]!r}")
    return found


def _accepted_s(load: OpenLoad) -> list[float]:
    return [answer.seconds for answer in load.answers if answer.status == 200]


def _recovered_s(found: Found) -> float:
    """From the end of the overload until the first request of a second in which none was refused, and nine of ten took at most
    twice what nine of ten took in the calm."""
    bound = 2 * _p(_accepted_s(found.calm), 0.9)
    answers = sorted((one for one in found.after.answers if one.sent >= found.overload.ended), key=lambda one: one.sent)
    for first in answers:
        second = [answer for answer in answers if first.sent <= answer.sent < first.sent + SETTLED_S]
        if all(answer.status == 200 for answer in second) and _p([answer.seconds for answer in second], 0.9) <= bound:
            return first.sent - found.overload.ended
    return WATCHED_AFTER_S


async def _watch_memory(mark: str, into: list[float]) -> None:
    while True:
        pids = [process.pid for process in processes_of(mark) if PART_OF_SERVICE.match(process.command)]
        into.append(sum(map(_resident_mib, pids)))
        await asyncio.sleep(1.0)


def _resident_mib(pid: int) -> float:
    """0 for a process that has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _p(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
