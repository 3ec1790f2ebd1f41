"""Tasks that a replica keeps ready: the least recently used go first, bounded by bytes."""

from collections import OrderedDict
from threading import Lock

from serving.engines.image_encoder import ReadyTask
from serving.metrics import EncoderMetrics


class ResidentEncoders:
    """A bounded table of tasks by specialization; safe to use from several threads."""

    def __init__(self, *, capacity_bytes: int, metrics: EncoderMetrics) -> None:
        self._capacity = capacity_bytes
        self._metrics = metrics
        self._tasks: OrderedDict[str, ReadyTask] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, specialization: str) -> ReadyTask | None:
        with self._lock:
            if specialization in self._tasks:
                self._tasks.move_to_end(specialization)
            return self._tasks.get(specialization)

    def put(self, specialization: str, task: ReadyTask) -> None:
        """Keep a task, dropping others as needed.  One that alone exceeds the capacity is not kept.

        Whoever holds a dropped one can go on using it.
        """
        with self._lock:
            if replaced := self._tasks.pop(specialization, None):
                self._bytes -= replaced.num_bytes
            if task.num_bytes > self._capacity:
                return
            self._tasks[specialization] = task
            self._bytes += task.num_bytes
            num_evicted = 0
            while self._bytes > self._capacity:
                _, dropped = self._tasks.popitem(last=False)
                self._bytes -= dropped.num_bytes
                num_evicted += 1
            self._metrics.resident(len(self._tasks), num_bytes=self._bytes, num_evicted=num_evicted)

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def bytes_used(self) -> int:
        return self._bytes
