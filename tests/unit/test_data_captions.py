"""Captions from web pages: what is no words goes, words stay."""

import pytest

import data_prep.curation.captions
from data_prep.curation.captions import clean_caption


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a red cat", "a red cat"),
        ("  a \n red\tcat ", "a red cat"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("&lt;b&gt;bold&lt;/b&gt; &amp;lt;i&amp;gt;move", "bold move"),
        ('<a href="http://x.example">Click</a><br/>here<!-- not this -->', "Click here"),
        ("a cat <!-- and no end <!-- of it", "a cat"),
        ("a &#" + "1" * 5000 + "; cat &#99999999", "a cat"),
        ("2 < 3 and 5 > 4", "2 < 3 and 5 > 4"),
        ("see https://x.example/a?b=c, or www.y.example now", "see or now"),
        ("mail me@host.example today", "mail today"),
        ("IMG_1234.jpg", ""),
        ("DSC01234 a boat", "a boat"),
        ("holiday-2019.JPEG on the beach", "on the beach"),
        ("PXL_20230101_123456789", ""),
        ("Boeing 747 and iPhone 12", "Boeing 747 and iPhone 12"),
        ("cafe\u0301", "café"),
        ("zero\u200bwidth\u0000", "zerowidth"),
        ("", ""),
    ],
)
def test_what_is_no_words_goes(text: str, cleaned: str) -> None:
    assert clean_caption(text) == cleaned


def test_a_cleaned_caption_stays_as_it_is() -> None:
    once = clean_caption("<p>A &quot;cat&quot;</p> www.x.example")
    assert clean_caption(once) == once


def test_a_caption_counts_up_to_a_length() -> None:
    assert clean_caption("a" * 30_000) == "a" * data_prep.curation.captions.MAX_CHARACTERS


@pytest.mark.parametrize(
    "piece",
    [
        "<!--",
        "<",
        "<a",
        "</a ",
        "a@",
        "a.",
        "a@a.",
        "&amp;",
        "&#1",
        "www.",
        "https://",
        "(",
        "IMG_1234_",
        "P123-",
        "-",
        "a\u0301",
    ],
)
def test_hostile_captions_take_time_in_proportion_to_their_length(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.curation.captions, "MAX_CHARACTERS", 1 << 20)
    clean_caption(piece * ((1 << 18) // len(piece)) + "x")  # for minutes, were it in the square of it
