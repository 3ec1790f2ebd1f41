"""The processes of a running service: that they stay the same, and how much memory they take meanwhile.  Linux only."""

from dataclasses import dataclass
from pathlib import Path

from serving.launch import APPLICATION_NAME
from tests.chaos._processes import Process, processes_of
from tests.result import rounded

REPLICA = f"ray::ServeReplica:{APPLICATION_NAME}:"
OTHERS = ("ProxyActor", "ServeController")


@dataclass(frozen=True)
class Memory:
    """Resident memory of one process, in MiB."""

    kind: str
    before_mib: float
    peak_mib: float
    after_mib: float

    @property
    def grown_mib(self) -> float:
        return self.peak_mib - self.before_mib

    def shown(self) -> dict[str, float]:
        return {"before": rounded(self.before_mib), "peak": rounded(self.peak_mib), "after": rounded(self.after_mib)}


class ServiceProcesses:
    """Those that the service has now, and what becomes of them."""

    def __init__(self, mark: str) -> None:
        """Args: mark, of the run (`_processes.MARK`)."""
        self._kinds = {process.pid: kind for process in processes_of(mark) if (kind := _kind(process))}
        self._before = {pid: _memory_mib(pid, "VmRSS") for pid in self._kinds}
        for pid in self._kinds:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted from here on; see proc(5)

    def memory(self) -> dict[str, Memory]:
        """Of those that are still there, by kind and process."""
        return {
            f"{kind} {pid}": Memory(kind, self._before[pid], _memory_mib(pid, "VmHWM"), _memory_mib(pid, "VmRSS"))
            for pid, kind in self._kinds.items()
            if Path(f"/proc/{pid}/status").exists()
        }

    def gone(self, mark: str) -> list[str]:
        """Those that have ended, and those that have come in their place."""
        now = {process.pid: kind for process in processes_of(mark) if (kind := _kind(process))}
        return [f"{kind} {pid}" for pid, kind in sorted(self._kinds.items() ^ now.items())]


def _kind(process: Process) -> str | None:
    """By the title that Ray gives it, which has the method that runs behind the name."""
    if process.command.startswith(REPLICA):
        return process.command.removeprefix(REPLICA).partition(".")[0]
    return next((kind for kind in OTHERS if process.command.startswith(f"ray::{kind}")), None)


def _memory_mib(pid: int, name: str) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) / 1024
