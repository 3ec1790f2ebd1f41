"""How a run looks in a terminal: a bar for the step that runs, a line for each that is done; and in a file: lines only."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:  # with it comes torch, which `hyperclip --help` need not wait for
    from pipeline.steps import Progress as OnProgress
    from pipeline.steps import State, Step, StepRecord

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
STATES: "dict[State, str]" = {
    "done": "[green]done [/]",
    "begun": "[yellow]begun[/]",
    "to do": "to do",
    "unknown": "[dim]?    [/]",
}
BAR_WIDTH = 24
NARROW = 96
"""Columns below which there is no room for a bar beside what the numbers say."""
FIRST_NOTE_S, LONGEST_SILENCE_S = 10.0, 600.0
"""Without a terminal (a log file, CI) a bar would be invisible, and lines tell of a long step instead."""


class ConsoleObserver:
    """Shows a run on standard output."""

    def skipped(self, step: "Step", record: "StepRecord") -> None:
        out.print(f"[green]✓[/] {escape(step.title)} [dim](done before)[/]\n    {escape(record.summary)}")

    def running(self, step: "Step", *, so_far: str | None) -> "ConsoleStep":
        return ConsoleStep(step.title, so_far=so_far)


class ConsoleStep:
    def __init__(self, title: str, *, so_far: str | None) -> None:
        self._title = title
        self._heading = f"{title} (continuing {so_far})" if so_far else title
        self._notes = NoteSchedule(started=time.monotonic())
        self._bar = _StepBar(self._heading)

    def __enter__(self) -> "OnProgress":
        if not out.is_terminal:
            out.print(f"… {escape(self._heading)}")
        self._bar.start()
        return self._advance

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if isinstance(error[1], KeyboardInterrupt):  # what was begun has to end: tell that the key was heard
            err.print(f"stopping: {escape(self._title)} …")

    def finished(self, record: "StepRecord") -> None:
        out.print(f"[green]✓[/] {escape(self._title)} [dim]({took(record)})[/]\n    {escape(record.summary)}")

    def _advance(self, done: int, total: int, note: str) -> None:
        self._bar.show(done, total, note)
        if not out.is_terminal and self._notes.is_due(time.monotonic()):
            out.print(f"    {done:,} of {total:,} {escape(note)}")


def took(record: "StepRecord") -> str:
    """How long a step took, and whether an attempt before did a part of it."""
    return f"{record.seconds:.0f} s" + (f", continued {record.continued}" if record.continued else "")


class NoteSchedule:
    """When to tell of a step in a log: at once, every ten seconds at first, and less often the longer it takes."""

    def __init__(self, *, started: float) -> None:
        self._started = self._next = started

    def is_due(self, now: float) -> bool:
        if now < self._next:
            return False
        self._next = now + min(max(FIRST_NOTE_S, 0.1 * (now - self._started)), LONGEST_SILENCE_S)
        return True


class _StepBar(Bars):
    """The title on a line of its own, so that what changes has the whole width for itself."""

    def __init__(self, heading: str) -> None:
        bar = [BarColumn(bar_width=BAR_WIDTH)] if out.width >= NARROW else []
        note = TextColumn("{task.fields[note]}", table_column=Column())  # what gives way where the terminal is narrow
        columns = [TextColumn("   "), *bar, _Counts(table_column=Column(no_wrap=True)), note, TimeElapsedColumn()]
        self._heading = Text.assemble(("…", "cyan"), " ", heading, overflow="ellipsis", no_wrap=True)
        super().__init__(*columns, console=out, transient=True, disable=not out.is_terminal)
        self._task = self.add_task("", total=None, note="")

    def show(self, done: int, total: int, note: str) -> None:
        self.update(self._task, completed=done, total=total, note=escape(note))

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self._heading
        yield self.make_tasks_table(self.tasks)


class _Counts(ProgressColumn):
    """ "1,200/4,000"; nothing until a step has said how much there is to do."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{int(task.completed):,}/{int(task.total):,}", style="progress.download")
