"""Which tasks a tenant has, how large each is and when it was last used: one listing answers, nothing is read.

used/TENANT/TASK.LABELS.SECONDS     its name is all that counts; SECONDS since 1970 of the last use that was noted

A task that is used again gets a new name before the old one is removed, so there may be two: the newest counts.
"""

import re
from dataclasses import dataclass

from infra import storage

_NAME = re.compile(r"([a-z2-7]{52})\.([0-9]{1,6})\.([0-9]{1,12})")


@dataclass(frozen=True)
class Use:
    """What is noted of one task."""

    num_labels: int
    used_at: int
    """Seconds since 1970."""


class TaskLedger:
    """Notes below the URI of a task store.  Any number of processes may write."""

    def __init__(self, uri: str) -> None:
        self._uri = storage.join(uri, "used")

    def tenants(self) -> list[str]:
        return [uri.rpartition("/")[2] for uri in storage.list_folders(self._uri)]

    def uses(self, tenant: str) -> dict[str, Use]:
        """The newest note of every task of a tenant."""
        newest: dict[str, Use] = {}
        for task, use in self.notes(tenant):
            if task not in newest or newest[task].used_at < use.used_at:
                newest[task] = use
        return newest

    def notes(self, tenant: str) -> list[tuple[str, Use]]:
        """All notes of a tenant, older ones of the same task too."""
        names = [uri.rpartition("/")[2] for uri in storage.list_files(storage.join(self._uri, tenant))]
        found = [_NAME.fullmatch(name) for name in names]
        return [(match[1], Use(int(match[2]), int(match[3]))) for match in found if match]

    def note(self, tenant: str, task: str, use: Use, *, instead_of: Use | None = None) -> None:
        """Note a use, and forget an older one."""
        storage.write_whole(self._note_uri(tenant, task, use), b"-")
        if instead_of is not None and instead_of != use:
            self.remove(tenant, task, instead_of)

    def remove(self, tenant: str, task: str, use: Use) -> None:
        storage.remove(self._note_uri(tenant, task, use))

    def _note_uri(self, tenant: str, task: str, use: Use) -> str:
        return storage.join(self._uri, tenant, f"{task}.{use.num_labels}.{use.used_at}")
