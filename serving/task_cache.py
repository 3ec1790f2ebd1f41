"""Tasks that an ingress replica remembers for a short while, so that a warm task costs no read of the store."""

import time
from collections import OrderedDict
from collections.abc import Callable

from serving.task_record import TaskRecord

MAX_LABELS = 1_000_000
"""Labels remembered in all, about 100 MB."""


class TaskCache:
    """Bounded by age and by the number of labels; for one event loop."""

    def __init__(self, *, ttl_s: float, clock: Callable[[], float] = time.monotonic, max_labels: int = MAX_LABELS) -> None:
        self._ttl = ttl_s
        self._clock = clock
        self._max_labels = max_labels
        self._num_labels = 0
        self._entries: OrderedDict[str, tuple[TaskRecord, float]] = OrderedDict()
        self._ready: dict[str, set[str]] = {}

    def get(self, task: str) -> TaskRecord | None:
        """The task, unless it was read too long ago."""
        if (entry := self._entries.get(task)) is None:
            return None
        record, expires = entry
        if self._clock() >= expires:
            self.forget(task)
            return None
        self._entries.move_to_end(task)
        return record

    def put(self, record: TaskRecord) -> None:
        """Remember a task; one that is remembered keeps its age, or a busy task would never be read again."""
        if record.task_id in self._entries:
            return
        self._entries[record.task_id] = (record, self._clock() + self._ttl)
        self._num_labels += len(record.labels)
        while self._num_labels > self._max_labels:
            self.forget(next(iter(self._entries)))

    def put_ready(self, record: TaskRecord, *, digest: str) -> None:
        """Remember a task, and that its encoder by this model is stored."""
        self.put(record)
        if record.task_id in self._entries:
            self._ready.setdefault(record.task_id, set()).add(digest)

    def is_ready(self, task: str, *, digest: str) -> bool:
        """Whether the task and its encoder were stored, not too long ago."""
        return self.get(task) is not None and digest in self._ready.get(task, ())

    def forget(self, task: str) -> None:
        self._ready.pop(task, None)
        if entry := self._entries.pop(task, None):
            self._num_labels -= len(entry[0].labels)
