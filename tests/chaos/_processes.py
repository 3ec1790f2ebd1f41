"""The processes of a run that was killed: which are left, and how long they take to end by themselves.

Linux only: they are found through /proc.
"""

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

MARK = "HYPERCLIP_CHAOS_RUN"
"""An environment variable that every process of a run inherits, and by which those that a killed one left are found."""
DIES_WITHIN_S = 90
"""Ours end within seconds, a Ray worker that was still starting after 30.  Ray's two agents first try to report the death of
their node, for 60 s, to a server that died with it (`publish_error_to_driver` in Ray 2.60, no setting); idle, they hold no port
of ours."""


class Process(NamedTuple):
    """One that is alive, as told to people."""

    pid: int
    parent: int
    age_s: float
    command: str
    """As it calls itself: Ray renames its workers after what they run."""

    def __str__(self) -> str:
        return f"{self.pid}, child of {self.parent}, {self.age_s:.0f} s old: {self.command}"


def processes_of(mark: str) -> list[Process]:
    """Processes that are alive and were started by the run with this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0") and (process := _described(folder)):
                found.append(process)
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def _described(folder: Path) -> Process | None:
    """From its folder in /proc; None when only its exit status is left."""
    state, parent, *rest = (folder / "stat").read_text().rpartition(")")[2].split()
    if state == "Z":
        return None
    started_s = int(rest[17]) / os.sysconf("SC_CLK_TCK")  # after boot; field 22 of proc(5)
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(int(folder.name), int(parent), time.clock_gettime(time.CLOCK_BOOTTIME) - started_s, command)


class DeathWatch(threading.Thread):
    """Waits for the processes of a killed run to end by themselves."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self._mark, self.seconds = mark, 0.0
        self.left: list[Process] = []
        self.start()

    def run(self) -> None:
        started = time.monotonic()
        while left := processes_of(self._mark):
            self.seconds = time.monotonic() - started
            if self.seconds > DIES_WITHIN_S:
                self.left = left
                return
            time.sleep(0.1)
