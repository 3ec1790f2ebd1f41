"""How a run looks in a terminal: a bar for the step that runs, a line for each that is done."""

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pipeline.steps import Progress as OnProgress
from pipeline.steps import Step, StepRecord

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
NOTES_PER_STEP = 5
"""Without a terminal (a log file, CI) a bar would be invisible: this many lines tell of a long step instead."""


class ConsoleObserver:
    """Shows a run on standard output."""

    def skipped(self, step: Step, record: StepRecord) -> None:
        out.print(f"[green]✓[/] {escape(step.title)} [dim](done before)[/]\n    {escape(record.summary)}")

    def running(self, step: Step) -> "ConsoleStep":
        return ConsoleStep(step.title)


class ConsoleStep:
    def __init__(self, title: str) -> None:
        self._title = title
        self._told = 0
        self._bar = Progress(
            TextColumn("[cyan]…[/] {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> OnProgress:
        if not out.is_terminal:
            out.print(f"… {escape(self._title)}")
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=None, note="")
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def finished(self, record: StepRecord) -> None:
        out.print(f"[green]✓[/] {escape(self._title)} [dim]({record.seconds:.0f} s)[/]\n    {escape(record.summary)}")

    def _advance(self, done: int, total: int, note: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
        if not out.is_terminal and done * NOTES_PER_STEP >= (self._told + 1) * total:
            self._told = done * NOTES_PER_STEP // total
            out.print(f"    {done:,} of {total:,} {escape(note)}")
