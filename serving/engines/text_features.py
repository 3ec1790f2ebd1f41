"""Features of labels that a replica remembers, so that a label seen before costs no pass through the text encoder.

Shapes: C labels, D embedding.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from serving.metrics import HypernetworkMetrics
from training.bundle import Bundle
from training.specialize import encode_labels

ENTRY_OVERHEAD_BYTES = 350
"""Of a key, its label and the array's own header, roughly."""


class TextFeatureCache:
    """Label features by model, templates and label: the least recently used go first, bounded by bytes.

    Safe to use from several threads.  What comes out does not depend on what was in it (see `encode_texts`).
    """

    def __init__(self, *, capacity_bytes: int, metrics: HypernetworkMetrics | None = None) -> None:
        self._capacity = capacity_bytes
        self._metrics = metrics or HypernetworkMetrics()
        self._features: OrderedDict[tuple[bytes, str], np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()
        self.encoded = 0
        """Labels that had to go through the text encoder."""

    def encode(self, bundle: Bundle, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(C, D) as `encode_labels` gives, which sees only the labels that are not here.

        Raises:
            BadInputError: a label does not fit the text encoder's context.
        """
        space = _space(bundle, templates)
        found = self._get(space, labels)
        missing = [place for place, features in enumerate(found) if features is None]
        if len(missing) == len(labels):
            encoded = encode_labels(bundle, labels, templates)
            self._keep(space, labels, encoded)
            self._metrics.labels(num_cached=0, num_encoded=len(labels))
            return encoded
        if missing:
            names = [labels[place] for place in missing]
            encoded = encode_labels(bundle, names, templates)
            self._keep(space, names, encoded)
            for place, features in zip(missing, encoded.cpu().numpy(), strict=True):
                found[place] = features
        self._metrics.labels(num_cached=len(labels) - len(missing), num_encoded=len(missing))
        return torch.from_numpy(np.stack([row for row in found if row is not None])).to(bundle.model.log_scale.device)

    def put(self, bundle: Bundle, labels: Sequence[str], templates: Sequence[str], features: Tensor) -> None:
        """Remember what was encoded elsewhere, or before: (C, D)."""
        self._put(_space(bundle, templates), labels, features)

    def __len__(self) -> int:
        return len(self._features)

    @property
    def bytes_used(self) -> int:
        return self._bytes

    @property
    def full(self) -> bool:
        """Whether something more would push something out."""
        return self._bytes > 0.9 * self._capacity

    def _keep(self, space: bytes, labels: Sequence[str], encoded: Tensor) -> None:
        self.encoded += len(labels)
        self._put(space, labels, encoded)

    def _get(self, space: bytes, labels: Sequence[str]) -> list[np.ndarray | None]:
        with self._lock:
            found = [self._features.get((space, label)) for label in labels]
            for label, features in zip(labels, found, strict=True):
                if features is not None:
                    self._features.move_to_end((space, label))
        return found

    def _put(self, space: bytes, labels: Sequence[str], features: Tensor) -> None:
        rows = features.cpu().numpy()
        with self._lock:
            for label, row in zip(labels, rows, strict=True):
                if (space, label) not in self._features:
                    # a copy: a view would keep the features of the whole set
                    self._features[space, label] = row.copy()
                    self._bytes += _num_bytes(label, row)
            while self._bytes > self._capacity:
                (_, label), dropped = self._features.popitem(last=False)
                self._bytes -= _num_bytes(label, dropped)
            self._metrics.remembered(self._bytes)


def _space(bundle: Bundle, templates: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps([bundle.digest, *templates]).encode()).digest()


def _num_bytes(label: str, features: np.ndarray) -> int:
    return features.nbytes + len(label.encode()) + ENTRY_OVERHEAD_BYTES
