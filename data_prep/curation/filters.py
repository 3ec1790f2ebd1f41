"""Rules on single samples: size, shape, caption and language, over columns of all samples at once."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator

from data_prep.curation.language import LANGUAGES
from data_prep.curation.pool import Pool
from data_prep.curation.rule_result import RuleResult
from infra.config import StrictModel


class FilterConfig(StrictModel):
    """A sample is kept when it satisfies every rule; None switches one off."""

    min_side: PositiveInt | None = 32
    """Shorter side, pixels."""
    max_side: PositiveInt | None = None
    """Longer side, pixels."""
    max_aspect: float | None = Field(default=4.0, ge=1)
    """Longer side over shorter."""
    min_caption_characters: PositiveInt | None = 2
    max_caption_characters: PositiveInt | None = 1000
    min_caption_words: PositiveInt | None = 1
    max_caption_words: PositiveInt | None = None


class LanguageConfig(StrictModel):
    """Captions of one language only."""

    code: str = "en"
    """ISO 639; one of fastText's 176."""
    min_probability: float = Field(default=0.0, ge=0, le=1)
    """Besides being the most probable one."""

    @field_validator("code")
    @classmethod
    def _one_that_is_known(cls, code: str) -> str:
        if code not in LANGUAGES:  # no caption would ever be in it
            raise ValueError("is none of the languages that fastText tells apart; codes are of ISO 639: en, de, zh, ...")
        return code


Preset = Literal["datacomp_basic"]
PRESETS: dict[Preset, dict[str, dict[str, object]]] = {
    # `load_uids_with_basic_filter_helper` of mlfoundations/datacomp, baselines/apply_filter.py: English to fastText, more than
    # two words, more than five characters, shorter side at least 200, aspect at most 3
    "datacomp_basic": {
        "filters": {
            "min_side": 200,
            "max_aspect": 3.0,
            "min_caption_characters": 6,
            "max_caption_characters": None,
            "min_caption_words": 3,
        },
        "language": {"code": "en"},
    }
}


def filter_results(pool: Pool, config: FilterConfig, language: LanguageConfig | None) -> Iterator[RuleResult]:
    """A result for each of the rules; a picture that cannot be read has no size to judge."""
    shorter, longer = np.minimum(pool.width, pool.height), np.maximum(pool.width, pool.height)
    measured = shorter > 0
    yield RuleResult.of(
        "size",
        [("too_small", measured & _below(shorter, config.min_side)), ("too_big", measured & _above(longer, config.max_side))],
        score=np.where(measured, shorter, np.nan),
    )
    bound = np.inf if config.max_aspect is None else config.max_aspect
    yield RuleResult.of(
        "aspect",
        [("too_elongated", measured & (longer > bound * np.maximum(shorter, 1)))],
        score=longer / np.where(measured, shorter, np.nan),
    )
    characters, words = pool.caption_characters, pool.caption_words
    yield RuleResult.of(
        "caption",
        [
            (
                "caption_too_short",
                _below(characters, config.min_caption_characters) | _below(words, config.min_caption_words),
            ),
            ("caption_too_long", _above(characters, config.max_caption_characters) | _above(words, config.max_caption_words)),
        ],
        score=characters,
    )
    if language is not None:
        wanted = pool.language.names.index(language.code) if language.code in pool.language.names else len(pool.language.names)
        spoken = (pool.language.codes == wanted) & (pool.language_score >= np.float32(language.min_probability))
        yield RuleResult.of("language", [("language", ~spoken)], score=pool.language_score)


def _below(values: np.ndarray, bound: int | None) -> np.ndarray:
    return np.zeros(len(values), bool) if bound is None else values < bound


def _above(values: np.ndarray, bound: int | None) -> np.ndarray:
    return np.zeros(len(values), bool) if bound is None else values > bound
