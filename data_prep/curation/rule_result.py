"""What a rule says of every sample: keep it, or for which reason not; with the score it went by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

KEPT = 0


@dataclass(frozen=True)
class RuleResult:
    """N samples, in the order of the pool."""

    name: str
    """Of the rule and of its file."""
    reasons: tuple[str, ...]
    """The reasons that it gives; a sample that breaks several bounds has the first."""
    codes: np.ndarray
    """(N,) uint8: 0 keeps, i drops for the i-th reason."""
    score: np.ndarray | None = None
    """(N,) float32; NaN where there is none."""
    match: np.ndarray | None = None
    """(N,) int64: which other sample is meant, a place in the pool or, for leaks, in `foreign`; -1 for none."""
    foreign: pa.Array | None = None
    """uids of samples that are not of this pool."""

    @classmethod
    def of(
        cls,
        name: str,
        broken: Sequence[tuple[str, np.ndarray]],
        *,
        score: np.ndarray | None = None,
        match: np.ndarray | None = None,
        foreign: pa.Array | None = None,
    ) -> Self:
        """Args: broken: reason and (N,) bool; the first of several names the sample's reason."""
        codes = np.zeros(len(broken[0][1]), np.uint8)
        for code, (_, dropped) in reversed(list(enumerate(broken, start=1))):
            codes[dropped] = code
        score = None if score is None else score.astype(np.float32)
        return cls(name, tuple(reason for reason, _ in broken), codes, score, match, foreign)

    @property
    def keep(self) -> np.ndarray:
        """(N,) bool."""
        return self.codes == KEPT
