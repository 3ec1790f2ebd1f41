"""What somebody asked to forget: the request, and the workspace's record of it, which later steps look at.

    {workspace}/removals.json    every request: hashes of its identifiers, when, and how much it reached; never the content

A download or an import does not fetch what was to be forgotten: it fails with the reason `removed`.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field

from infra import artefacts, storage
from infra.config import StrictModel, content_hash

REMOVALS_NAME = "removals.json"
SCHEMA_VERSION = 1


class RemovalRequest(NamedTuple):
    """Samples to forget, by any of these."""

    uids: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    """Names without port, in lower case; a host stands for its subdomains too."""

    @property
    def identifiers(self) -> frozenset[str]:
        """Hashes of what was asked for."""
        named = [("uid", self.uids), ("url", self.urls), ("host", self.hosts)]
        return frozenset(_identifier(kind, value) for kind, values in named for value in values)


class Removal(StrictModel):
    """One request."""

    identifiers: list[str]
    at: str
    """ISO 8601, UTC; of the first attempt."""
    state: Literal["begun", "done"]
    """Begun: it was cut off; the same command again finishes it."""
    reached: dict[str, int] = Field(default_factory=dict)
    """Samples by folder in the workspace; of all attempts, so that the models trained on them are found again."""


class Removals(StrictModel):
    """`removals.json`."""

    schema_version: Literal[1] = 1
    removals: list[Removal] = Field(default_factory=list)

    def with_removal(self, removal: Removal) -> "Removals":
        """The same request again takes the place of the earlier one."""
        others = [one for one in self.removals if one.identifiers != removal.identifiers]
        return self.rebuilt(removals=[*others, removal])


class Forgotten:
    """Tells whether a row was to be forgotten."""

    def __init__(self, identifiers: Iterable[str]) -> None:
        self._identifiers = frozenset(identifiers)

    def __bool__(self) -> bool:
        return bool(self._identifiers)

    def fingerprint(self) -> str:
        return content_hash(sorted(self._identifiers))

    def covers(self, *, uid: str, url: str | None) -> bool:
        return bool(self._identifiers) and not self._identifiers.isdisjoint(_identifiers(uid, url))


def read_removals(workspace_uri: str) -> Removals:
    """What was asked for in a workspace; nothing when there is no record."""
    uri = storage.join(workspace_uri, REMOVALS_NAME)
    if not storage.exists(uri):
        return Removals()
    artefacts.check_schema_version(uri, newest=SCHEMA_VERSION)
    return artefacts.read_model(uri, Removals)


def write_removals(removals: Removals, workspace_uri: str) -> None:
    storage.write_atomic(storage.join(workspace_uri, REMOVALS_NAME), removals.model_dump_json(indent=1))


def forgotten_in(raw_uri: str) -> Forgotten:
    """What the workspace of a raw folder (`{workspace}/{step}/raw`) was asked to forget."""
    step_uri = raw_uri.rstrip("/").rpartition("/")[0]
    found = read_removals(step_uri.rpartition("/")[0])
    return Forgotten(identifier for removal in found.removals for identifier in removal.identifiers)


def matched(request: RemovalRequest, *, uid: str, url: str | None) -> set[str]:
    """What of a request names a row: its uid, its URL, hosts."""
    hosts = request.hosts.intersection(_hosts(url)) if url and request.hosts else ()
    return {*({uid} & request.uids), *({url or ""} & request.urls), *hosts}


def _identifiers(uid: str, url: str | None) -> set[str]:
    found = {_identifier("uid", uid)}
    if url:
        found.add(_identifier("url", url))
        found.update(_identifier("host", host) for host in _hosts(url))
    return found


def _hosts(url: str) -> list[str]:
    """Of a URL: its host, and every domain that is in."""
    try:
        host = (urlsplit(url).hostname or "").lower().rstrip(".")
    except ValueError:
        return []
    parts = host.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))] if host else []


def _identifier(kind: str, value: str) -> str:
    return hashlib.sha256(f"{kind}:{value}".encode()).hexdigest()
