"""Encoders that a replica keeps ready: the least recently used go first, bounded by bytes."""

from collections import OrderedDict
from threading import Lock

from training.specialize import SpecializedEncoder


class ResidentEncoders:
    """A bounded table of specialized encoders; safe to use from several threads."""

    def __init__(self, *, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._encoders: OrderedDict[str, SpecializedEncoder] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, specialization: str) -> SpecializedEncoder | None:
        with self._lock:
            if specialization in self._encoders:
                self._encoders.move_to_end(specialization)
            return self._encoders.get(specialization)

    def put(self, specialization: str, encoder: SpecializedEncoder) -> None:
        """Keep an encoder, dropping others as needed.  One that alone exceeds the capacity is not kept.

        Whoever holds a dropped encoder can go on using it.
        """
        with self._lock:
            if replaced := self._encoders.pop(specialization, None):
                self._bytes -= num_bytes(replaced)
            if num_bytes(encoder) > self._capacity:
                return
            self._encoders[specialization] = encoder
            self._bytes += num_bytes(encoder)
            while self._bytes > self._capacity:
                _, dropped = self._encoders.popitem(last=False)
                self._bytes -= num_bytes(dropped)

    def __len__(self) -> int:
        return len(self._encoders)

    @property
    def bytes_used(self) -> int:
        return self._bytes


def num_bytes(encoder: SpecializedEncoder) -> int:
    """Of the tensors and, roughly, of the labels."""
    tensors = encoder.delta.nbytes + encoder.text_features.nbytes
    return tensors + sum(len(label.encode()) + 64 for label in encoder.task.labels)
