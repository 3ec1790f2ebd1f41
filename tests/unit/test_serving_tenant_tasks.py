"""Quotas, notes of use, and the removal of unused tasks, also while somebody uses them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.config import ServingConfig
from serving.limits import ServingLimits
from serving.problems import ProblemError
from serving.schemas import TaskRequest
from serving.task_ledger import TaskLedger, Use
from serving.task_record import TaskRecord, make_record
from serving.task_store import TaskStore
from serving.task_sweep import sweep
from serving.tenant_tasks import TenantTasks
from tests.object_store import object_store
from tests.unit.serving_helpers import LIMITS, LocalService, check_problem, picture, play

TTL_S = 1000.0


@pytest.fixture
def config(config: ServingConfig) -> ServingConfig:
    return config.rebuilt(limits=LIMITS.rebuilt(max_tasks_per_tenant=2, max_labels_per_tenant=5))


def record_of(*labels: str, tenant: str = "t") -> TaskRecord:
    return make_record(tenant=tenant, labels=labels, templates=None, pinned_version=None)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def tenant_tasks(uri: str, clock: Clock, **limits: Any) -> TenantTasks:
    return TenantTasks(TaskStore(uri), ServingLimits(**limits), ttl_s=TTL_S, refresh_s=30, clock=clock)


async def make(tasks: TenantTasks, record: TaskRecord) -> None:
    async with tasks.place(record):
        await asyncio.sleep(0)


async def settled(tasks: TenantTasks) -> None:
    while tasks._writing:
        await asyncio.wait(list(tasks._writing.values()))


def test_a_quota_of_tasks_is_told_and_freed_by_deletion(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        made = [(await local.http.post("/v1/tasks", json={"labels": [name]})).json() for name in "ab"]
        problem = check_problem(await local.http.post("/v1/tasks", json={"labels": ["c"]}), 403)
        assert problem["type"] == "urn:hyperclip:problem:quota_exceeded"
        assert 'shed_total{reason="quota_exceeded"} 1.0' in (await local.http.get("/metrics")).text
        assert "at most 2 tasks" in problem["detail"] and "DELETE /v1/tasks/ID" in problem["detail"]
        again = await local.http.post("/v1/tasks", json={"labels": ["a"]})
        assert again.json()["cached"] is True  # what is there is not refused
        assert (await local.http.delete(f"/v1/tasks/{made[0]['task_id']}")).status_code == 204
        assert (await local.http.post("/v1/tasks", json={"labels": ["c"]})).status_code == 200
        listed = (await local.http.get("/v1/tasks")).json()
        assert {task["task_id"] for task in listed["tasks"]} >= {made[1]["task_id"]}
        assert (len(listed["tasks"]), listed["num_labels"], listed["max_tasks"], listed["max_labels"]) == (2, 2, 2, 5)

    play(config, scenario)


def test_a_quota_of_labels_counts_all_tasks(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        assert (await local.http.post("/v1/tasks", json={"labels": list("abc")})).status_code == 200
        problem = check_problem(await local.http.post("/v1/tasks", json={"labels": list("def")}), 403)
        assert "1 tasks with 3 labels in all" in problem["detail"]
        assert (await local.http.post("/v1/tasks", json={"labels": list("de")})).status_code == 200

    play(config, scenario)


def test_a_refused_task_takes_no_place(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        for name in "ab":  # too many tokens
            check_problem(await local.http.post("/v1/tasks", json={"labels": [name], "templates": ["x " * 18 + "{}"] * 1}), 422)
            assert not [path for path in Path(config.task_store_uri).rglob("*") if path.is_file()]  # neither task nor note
        for name in "ab":
            assert (await local.http.post("/v1/tasks", json={"labels": [name]})).status_code == 200

    play(config.rebuilt(limits=config.limits.rebuilt(max_total_tokens=10)), scenario)


def test_a_refusal_leaves_a_task_that_was_there_before(tmp_path: Path) -> None:
    record, store = record_of("a"), TaskStore(str(tmp_path))

    async def refused(tasks: TenantTasks, error: Exception) -> None:
        with pytest.raises(type(error)):
            async with tasks.place(record):
                raise error

    async def inside() -> None:
        tasks = tenant_tasks(str(tmp_path), Clock())
        await refused(tasks, ProblemError(422, "invalid_request", "too long"))
        assert not store.has(record.task_id, tenant="t") and await tasks.uses("t") == {}
        await refused(tasks, ProblemError(503, "timeout", "slow"))  # the encoder may be there all the same
        assert store.has(record.task_id, tenant="t") and list(await tasks.uses("t")) == [record.task_id]
        await refused(tasks, ProblemError(422, "invalid_request", "another model reads less"))
        assert store.has(record.task_id, tenant="t")

    asyncio.run(inside())


def test_a_task_that_cannot_be_stored_fails_and_frees_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, made = record_of("a"), []

    def full(_self: TaskStore, _record: TaskRecord) -> None:
        raise OSError("no space left")

    async def inside() -> None:
        tasks = tenant_tasks(str(tmp_path), Clock(), max_tasks_per_tenant=1)
        with monkeypatch.context() as patch:
            patch.setattr(TaskStore, "put", full)
            with pytest.raises(OSError, match="no space left"):
                async with tasks.place(record):
                    made.append("encoder")
        await make(tasks, record)  # the place is free again
        assert made and TaskStore(str(tmp_path)).has(record.task_id, tenant="t")

    asyncio.run(inside())


def test_tenants_have_quotas_of_their_own_and_see_their_own_tasks_only(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        for tenant in ("one", "two"):
            for name in "ab":
                await local.service.create_task(TaskRequest(labels=(name,)), tenant=tenant)
            with pytest.raises(ProblemError, match="at most 2 tasks"):
                await local.service.create_task(TaskRequest(labels=("c",)), tenant=tenant)
        one, two = [await local.service.list_tasks(tenant=tenant) for tenant in ("one", "two")]
        assert not {task.task_id for task in one.tasks} & {task.task_id for task in two.tasks}
        assert (await local.service.list_tasks(tenant="three")).tasks == ()

    play(config, scenario)


def test_callers_at_the_same_time_do_not_pass_the_quota_together(tmp_path: Path) -> None:
    async def inside() -> None:
        tasks = tenant_tasks(str(tmp_path), Clock(), max_tasks_per_tenant=3)
        ended = await asyncio.gather(*(make(tasks, record_of(str(i))) for i in range(10)), return_exceptions=True)
        assert sum(isinstance(end, ProblemError) for end in ended) == 7
        assert len(await tasks.uses("t")) == 3

    asyncio.run(inside())


def test_what_another_replica_deletes_makes_room(tmp_path: Path) -> None:
    async def inside() -> None:
        clock = Clock()
        here, there = (tenant_tasks(str(tmp_path), clock, max_tasks_per_tenant=1) for _ in range(2))
        await make(here, record_of("a"))
        with pytest.raises(ProblemError):
            await make(here, record_of("b"))
        await there.delete(record_of("a"))
        clock.now += 2
        await make(here, record_of("b"))

    asyncio.run(inside())


def test_a_task_that_is_asked_for_from_memory_is_stored_again_when_it_was_deleted_elsewhere(tmp_path: Path) -> None:
    async def inside() -> None:
        clock = Clock()
        here, there = (tenant_tasks(str(tmp_path), clock) for _ in range(2))
        await make(here, record_of("a"))
        await there.delete(record_of("a"))
        here.used(record_of("a"))
        await settled(here)
        assert TaskStore(str(tmp_path)).get(record_of("a").task_id, tenant="t") == record_of("a")
        assert len(await there.uses("t")) == 1
        here.used(record_of("a"))  # and its own deletion wins over what it does beside
        await here.delete(record_of("a"))
        await settled(here)
        assert not TaskStore(str(tmp_path)).has(record_of("a").task_id, tenant="t")

    asyncio.run(inside())


def test_unused_tasks_are_swept_and_used_ones_stay(tmp_path: Path) -> None:
    uri, clock = str(tmp_path), Clock()
    store, ledger = TaskStore(uri), TaskLedger(uri)

    async def inside() -> None:
        tasks = tenant_tasks(uri, clock)
        await make(tasks, record_of("used"))
        await make(tasks, record_of("unused"))
        for _ in range(12):
            clock.now += TTL_S / 8
            tasks.used(record_of("used"))
            await settled(tasks)

    asyncio.run(inside())
    assert len(ledger.notes("t")) == 2  # a new note takes the place of the older one
    assert sweep(store, ledger, ttl_s=TTL_S, now=clock.now) == 1
    assert store.has(record_of("used").task_id, tenant="t") and not store.has(record_of("unused").task_id, tenant="t")
    assert list(ledger.uses("t")) == [record_of("used").task_id]
    assert sweep(store, ledger, ttl_s=TTL_S, now=clock.now) == 0


@pytest.mark.parametrize("moment", ["get", "delete", "uses", "remove"])
@pytest.mark.parametrize("after", [False, True])
def test_a_use_in_the_middle_of_a_sweep_keeps_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, after: bool
) -> None:
    uri, clock, record = str(tmp_path), Clock(), record_of("a", "b")
    store, ledger = TaskStore(uri), TaskLedger(uri)

    def use() -> None:
        async def inside() -> None:
            tasks = tenant_tasks(uri, clock)  # as another process
            tasks.used(record)
            await settled(tasks)

        asyncio.run(inside())

    asyncio.run(make(tenant_tasks(uri, clock), record))
    clock.now += 2 * TTL_S
    owner: Any = store if moment in ("get", "delete") else ledger
    original: Callable[..., Any] = getattr(owner, moment)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not after:
            use()
        found = original(*args, **kwargs)
        if after:
            use()
        return found

    monkeypatch.setattr(owner, moment, interrupted)
    sweep(store, ledger, ttl_s=TTL_S, now=clock.now)
    monkeypatch.undo()
    assert store.get(record.task_id, tenant="t") == record
    assert ledger.uses("t") == {record.task_id: Use(2, int(clock.now))}
    assert sweep(store, ledger, ttl_s=TTL_S, now=clock.now) == 0


def test_a_sweep_that_was_killed_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, clock = str(tmp_path), Clock()
    store, ledger = TaskStore(uri), TaskLedger(uri)
    asyncio.run(make(tenant_tasks(uri, clock), record_of("a")))
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "remove", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sweep(store, ledger, ttl_s=TTL_S, now=clock.now + 2 * TTL_S)
    assert sweep(store, ledger, ttl_s=TTL_S, now=clock.now + 2 * TTL_S) == 1
    assert ledger.notes("t") == []


def test_a_damaged_task_is_unknown_until_it_is_made_again(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["a", "b"]})).json()["task_id"]
        (path,) = Path(config.task_store_uri).glob("tasks/*/*.json")
        for damage in (b"", b"{", path.read_bytes()[:-9]):
            path.write_bytes(damage)
            check_problem(await local.http.get(f"/v1/tasks/{task}"), 404)
            assert (await local.http.post("/v1/tasks", json={"labels": ["a", "b"]})).json()["task_id"] == task
            assert (await local.http.get(f"/v1/tasks/{task}")).status_code == 200

    play(config.rebuilt(task_cache_s=0), scenario)


def test_a_damaged_encoder_is_made_again(config: ServingConfig) -> None:
    async def scenario(local: LocalService) -> None:
        task = (await local.http.post("/v1/tasks", json={"labels": ["a", "b"]})).json()["task_id"]
        url, headers = f"/v1/tasks/{task}/classify", {"content-type": "image/png"}
        (path,) = Path(config.task_store_uri).rglob("encoder.safetensors")
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert (await local.http.post(url, content=picture(), headers=headers)).status_code == 200
        assert path.read_bytes() == whole

    play(config, scenario)


def test_tasks_live_in_an_object_store(bundle_uri: str) -> None:
    async def scenario(local: LocalService) -> None:
        made = (await local.http.post("/v1/tasks", json={"labels": ["a", "b"]})).json()
        assert made["cached"] is False
        await settled(local.service._of_tenants)

    async def restarted(local: LocalService) -> None:
        made = (await local.http.post("/v1/tasks", json={"labels": ["a", "b"]})).json()
        assert made["cached"] is True
        headers = {"content-type": "image/png"}
        answer = await local.http.post(f"/v1/tasks/{made['task_id']}/classify", content=picture(), headers=headers)
        assert answer.status_code == 200 and answer.json()["timings_ms"]["specialize"] is None
        assert [task["num_labels"] for task in (await local.http.get("/v1/tasks")).json()["tasks"]] == [2]
        assert (await local.http.delete(f"/v1/tasks/{made['task_id']}")).status_code == 204
        assert (await local.http.get("/v1/tasks")).json()["tasks"] == []

    with object_store() as uri:
        config = ServingConfig(bundle_uri=bundle_uri, task_store_uri=f"{uri}/tasks", limits=LIMITS)
        play(config, scenario)
        play(config, restarted)
