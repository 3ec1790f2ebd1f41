"""The `hyperclip` command, called in the process of a test."""

from collections.abc import Callable
from typing import NamedTuple


class Ended(NamedTuple):
    """How it ended, and what it said."""

    status: int
    output: str
    error: str


Command = Callable[..., Ended]
"""What the fixture `hyperclip` gives: called with the arguments."""
