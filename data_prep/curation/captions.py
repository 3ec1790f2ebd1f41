"""Cleaning of captions that come from web pages: markup, addresses and file names go, words stay."""

import html
import re
import unicodedata

MAX_CHARACTERS = 20_000
"""A longer caption is cut before it is cleaned: the default rules drop what is a twentieth as long.  It bounds what one
caption costs: putting combining marks in order, a part of NFC, takes time in the square of their number."""

# an entity may hide another ("&amp;lt;"); more rounds than this would be an attack, not a caption
_MAX_UNESCAPES = 3
# a number this long is no character, and one of thousands of digits is more than `int` reads
_LONG_REFERENCE = re.compile(r"&#[0-9]{8,};?")
# a comment without end goes on to the end of the text, as in a browser: looking for its end again from each start in it would
# take time in the square of their number
_TAG = re.compile(r"<!--.*?(?:-->|\Z)|</?[a-zA-Z][^<>]*>", re.DOTALL)
_URL = re.compile(r"\b(?:https?://|ftp://|www\.)[^\s<>\"']+", re.IGNORECASE)
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b")
_FILE_NAME = re.compile(
    # any name that ends as a picture does, and what cameras and phones call theirs
    r"\b[\w()+-]{1,100}\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic)\b"
    r"|\b(?:IMG|DSC|DSCN|DSCF|PXL|MVIMG|P|GOPR|PICT|SAM|Screenshot|image|photo|untitled)[_-]?\d{3,}(?:[_-]\d+)*\b",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200b\u2060\ufeff]")


def clean_caption(text: str) -> str:
    """A caption without HTML, addresses of pages and people, and file names; in NFC, with single spaces.

    Empty when nothing else was in it, so that the rule on captions drops the sample.  Only the first `MAX_CHARACTERS` count.
    """
    text = text[:MAX_CHARACTERS]
    for _ in range(_MAX_UNESCAPES):
        unescaped = html.unescape(_LONG_REFERENCE.sub(" ", text))
        if unescaped == text:
            break
        text = unescaped
    for unwanted in (_TAG, _URL, _EMAIL, _FILE_NAME):
        text = unwanted.sub(" ", text)
    text = _CONTROL.sub("", unicodedata.normalize("NFC", text))
    return " ".join(text.split())
