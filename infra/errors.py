"""Errors meant for people: what was wrong, the value, and what to do.

The command line prints the message of a `HyperClipError` alone and exits with its `exit_code`; the service turns it into
problem+json.  Anything else that escapes is a bug of ours and keeps its traceback.
"""


class HyperClipError(Exception):
    """Base of the errors a person can act on."""

    exit_code = 1


class BadInputError(HyperClipError, ValueError):
    """What was given cannot be used: a configuration key, a file, a label list, a picture."""

    exit_code = 2


class DataLossError(HyperClipError):
    """Samples in do not equal samples out plus samples accounted for, or too many of them failed."""


class CorruptArtefactError(HyperClipError):
    """A stored artefact does not match its manifest (hash, size, structure or schema version)."""


class ClusterError(HyperClipError):
    """Ray does not start, or does not answer."""


class ParityError(HyperClipError):
    """Two paths that must compute the same thing do not."""
