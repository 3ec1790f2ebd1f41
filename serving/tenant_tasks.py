"""How many tasks each tenant has and when they were used, as one ingress replica knows it: quotas, and notes of use.

What other replicas add or remove is seen when the notes are read again, so a quota may be passed by what they make meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serving.limits import ServingLimits
from serving.problems import ProblemError
from serving.task_ledger import TaskLedger, Use
from serving.task_record import TaskRecord
from serving.task_store import TaskStore

logger = logging.getLogger(__name__)

DAY_S = 86_400.0
MIN_REFRESH_S = 1.0
"""Tasks may be removed elsewhere at any time, but a tenant at its quota, or a task in use, is looked up no more often."""


@dataclass
class _Known:
    """What is known of one tenant."""

    uses: dict[str, Use] = field(default_factory=dict)
    read_at: float = float("-inf")
    being_made: dict[str, int] = field(default_factory=dict)
    """Labels of tasks that have a place and no note yet."""

    seen_at: dict[str, float] = field(default_factory=dict)
    """When it was last looked whether a task is still stored."""

    def size(self) -> tuple[int, int]:
        """Tasks and labels."""
        making = {task: number for task, number in self.being_made.items() if task not in self.uses}
        return len(self.uses) + len(making), sum(use.num_labels for use in self.uses.values()) + sum(making.values())


class TenantTasks:
    """For one event loop."""

    def __init__(
        self,
        store: TaskStore,
        limits: ServingLimits,
        *,
        ttl_s: float | None,
        refresh_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args: ttl_s, after which unused tasks are swept; refresh_s, how long the notes read last are believed."""
        self._store, self._limits, self._ttl_s, self._refresh_s, self._clock = store, limits, ttl_s, refresh_s, clock
        self._ledger = TaskLedger(store.uri)
        self._note_every_s = DAY_S if ttl_s is None else min(DAY_S, ttl_s / 10)
        self._known: dict[str, _Known] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def place(self, record: TaskRecord) -> AsyncIterator[None]:
        """A place for a task while its encoder is made.  Beside that it is stored, for a store may be far away.

        A task that is refused (422: no encoder can be made for it) is removed again, unless it was there before.

        Raises:
            ProblemError: 403, the tenant has as many as it may.
        """
        known = self._known.setdefault(record.tenant, _Known())
        await self._check_quota(record, known)
        was_there = record.task_id in known.uses
        known.being_made[record.task_id] = len(record.labels)
        note = self._note(record, known)
        storing = asyncio.get_running_loop().create_task(asyncio.to_thread(self._store_noted, record, note))
        try:
            yield
            await storing
        except BaseException as error:
            await asyncio.gather(storing, return_exceptions=True)
            known.uses.pop(record.task_id, None)  # if it was there before, the notes say so when they are read next
            if isinstance(error, ProblemError) and error.problem.status == 422 and not was_there:
                await asyncio.to_thread(self._delete, record)
            raise
        finally:
            known.being_made.pop(record.task_id, None)

    def used(self, record: TaskRecord) -> None:
        """A task that this replica remembers is used: note that now and then, and see that it is still stored.

        It happens beside the call.  Another replica may have deleted the task, or a sweep may be about to.
        """
        known = self._known.setdefault(record.tenant, _Known())
        now = self._clock()
        if record.task_id in self._writing or now - known.seen_at.get(record.task_id, 0) < MIN_REFRESH_S:
            return
        known.seen_at[record.task_id] = now
        use = self._note(record, known)
        work = asyncio.get_running_loop().create_task(self._keep(record, use))
        self._writing[record.task_id] = work
        work.add_done_callback(lambda _: self._writing.pop(record.task_id))

    async def delete(self, record: TaskRecord) -> None:
        """Forget a task, what was made for it, and its notes."""
        if (writing := self._writing.get(record.task_id)) is not None:
            await asyncio.wait([writing])  # or it could store the task again
        await asyncio.to_thread(self._delete, record)
        if (known := self._known.get(record.tenant)) is not None:
            known.uses.pop(record.task_id, None)
            known.seen_at.pop(record.task_id, None)

    async def uses(self, tenant: str) -> dict[str, Use]:
        """The tasks of a tenant, as noted now."""
        known = self._known.setdefault(tenant, _Known())
        await self._read(tenant, known)
        return dict(known.uses)

    async def _check_quota(self, record: TaskRecord, known: _Known) -> None:
        age = self._clock() - known.read_at
        if age >= self._refresh_s or (self._is_full(record, known) and age >= MIN_REFRESH_S):
            await self._read(record.tenant, known)
        if not self._is_full(record, known):
            return
        limits = self._limits
        tasks, labels = known.size()
        waiting = "" if self._ttl_s is None else f", or wait: what is not used for {self._ttl_s:g} s is removed"
        raise ProblemError(
            403,
            "quota_exceeded",
            f"there are {tasks:,} tasks with {labels:,} labels in all; at most {limits.max_tasks_per_tenant:,} tasks with "
            f"{limits.max_labels_per_tenant:,} labels are allowed, and this one has {len(record.labels):,}. "
            f"GET /v1/tasks lists them; delete some with DELETE /v1/tasks/ID{waiting}",
        )

    def _is_full(self, record: TaskRecord, known: _Known) -> bool:
        if record.task_id in known.uses:
            return False
        tasks, labels = known.size()
        too_many = tasks + 1 > self._limits.max_tasks_per_tenant
        return too_many or labels + len(record.labels) > self._limits.max_labels_per_tenant

    async def _read(self, tenant: str, known: _Known) -> None:
        read_at = self._clock()
        known.uses = await asyncio.to_thread(self._ledger.uses, tenant)
        known.read_at = read_at
        known.seen_at.clear()

    def _note(self, record: TaskRecord, known: _Known) -> tuple[Use, Use | None] | None:
        """What to write and what to remove, when the last note is old; it counts as written."""
        before = known.uses.get(record.task_id)
        now = self._clock()
        if before is not None and now - before.used_at < self._note_every_s:
            return None
        known.uses[record.task_id] = Use(len(record.labels), int(now))
        return known.uses[record.task_id], before

    async def _keep(self, record: TaskRecord, use: tuple[Use, Use | None] | None) -> None:
        try:
            await asyncio.to_thread(self._write, record, use)
        except Exception:  # the next use tries again
            logger.exception("cannot note the use of task %s", record.task_id)
            self._known[record.tenant].uses.pop(record.task_id, None)

    def _store_noted(self, record: TaskRecord, use: tuple[Use, Use | None] | None) -> None:
        if use is not None:
            self._ledger.note(record.tenant, record.task_id, use[0], instead_of=use[1])
        self._store.put(record)

    def _write(self, record: TaskRecord, use: tuple[Use, Use | None] | None) -> None:
        """The note first: a sweep that has deleted the task by then sees it afterwards (see task_sweep.py)."""
        if use is not None:
            self._ledger.note(record.tenant, record.task_id, use[0], instead_of=use[1])
        if not self._store.has(record.task_id, tenant=record.tenant):
            self._ledger.note(record.tenant, record.task_id, Use(len(record.labels), int(self._clock())))
            self._store.put(record)

    def _delete(self, record: TaskRecord) -> None:
        self._store.delete(record.task_id, tenant=record.tenant)
        for task, use in self._ledger.notes(record.tenant):
            if task == record.task_id:
                self._ledger.remove(record.tenant, task, use)
