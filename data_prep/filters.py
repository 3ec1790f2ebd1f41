"""Rules on single samples: size, shape and caption."""

from typing import Literal

from pydantic import Field, PositiveInt

from infra.config import StrictModel

FilterReason = Literal["too_small", "too_big", "too_elongated", "caption_too_short", "caption_too_long"]


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


def filter_reason(config: FilterConfig, *, width: int, height: int, caption: str) -> FilterReason | None:
    """Why a sample is dropped, or None; the first rule it breaks names it."""
    shorter, longer = min(width, height), max(width, height)
    text = caption.strip()
    characters, words = len(text), len(text.split())
    broken: list[tuple[FilterReason, bool]] = [
        ("too_small", config.min_side is not None and shorter < config.min_side),
        ("too_big", config.max_side is not None and longer > config.max_side),
        ("too_elongated", config.max_aspect is not None and longer > config.max_aspect * shorter),
        ("caption_too_short", _below(characters, config.min_caption_characters) or _below(words, config.min_caption_words)),
        ("caption_too_long", _above(characters, config.max_caption_characters) or _above(words, config.max_caption_words)),
    ]
    return next((reason for reason, is_broken in broken if is_broken), None)


def _below(value: int, bound: int | None) -> bool:
    return bound is not None and value < bound


def _above(value: int, bound: int | None) -> bool:
    return bound is not None and value > bound
