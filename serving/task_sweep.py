"""Removing tasks that nobody has used for a while, and encoders of models that are served no more.

A sweep may meet a use of the same task by another process at any moment.  Such a use is noted first and then stores the task if
it is not there (`TenantTasks.used`); the sweep deletes first and then looks for a new note.  So whichever comes first, the task
is there in the end; an encoder that went is made again by the next call.
"""

import contextlib
import logging
from collections.abc import Collection

from infra.errors import CorruptArtefactError
from serving.task_ledger import TaskLedger
from serving.task_record import specialization_id
from serving.task_store import TaskStore

logger = logging.getLogger(__name__)


def sweep(store: TaskStore, ledger: TaskLedger, *, ttl_s: float, now: float) -> int:
    """Remove every task whose last use was noted longer ago than that; returns how many."""
    return sum(_sweep_tenant(store, ledger, tenant, oldest=now - ttl_s) for tenant in ledger.tenants())


def _sweep_tenant(store: TaskStore, ledger: TaskLedger, tenant: str, *, oldest: float) -> int:
    notes = ledger.notes(tenant)
    newest: dict[str, int] = {}
    for task, use in notes:
        newest[task] = max(use.used_at, newest.get(task, 0))
    expired = {task for task, used_at in newest.items() if used_at < oldest}
    records = {}
    for task in expired:
        with contextlib.suppress(CorruptArtefactError):  # a damaged one cannot be used either
            records[task] = store.get(task, tenant=tenant)
        store.delete(task, tenant=tenant)
    now_there = ledger.uses(tenant) if expired else {}
    removed = 0
    for task in expired:
        if task in now_there and now_there[task].used_at > newest[task]:  # used while it was being removed
            if (record := records.get(task)) is not None:
                store.put(record)
            continue
        removed += 1
    for task, use in notes:  # last: a sweep that is killed before finds the same tasks again
        if task in expired or use.used_at < newest[task]:
            ledger.remove(tenant, task, use)
    if removed:
        logger.info("removed %d tasks of tenant %s that were not used", removed, tenant)
    return removed


def sweep_encoders(store: TaskStore, *, digests: Collection[str]) -> int:
    """Remove the encoders of all models but these (digests of their bundles); returns how many.

    One that is needed after all, as a model came back or another service has the same store, is made again by the next call.
    """
    removed = 0
    for task in store.tasks_with_encoders():
        kept = {specialization_id(task, digest) for digest in digests}
        for specialization in store.specializations(task):
            if specialization not in kept:
                store.delete_encoder(task, specialization)
                removed += 1
    if removed:
        logger.info("removed %d encoders of models that are served no more", removed)
    return removed
