"""What a run prints: in a terminal of any width, and in a log."""

import io
import itertools
import subprocess
import sys

import pytest
from rich.console import Console

from pipeline import console
from pipeline.console import ConsoleStep, NoteSchedule, took
from pipeline.steps import StepRecord

TITLE = "Filter and deduplicate the evaluation pictures"
NOTE = "loss 0.123, 1,234 samples/s, 0:01:23 left"


def shown_at(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a step that has reported, in a terminal of this width."""
    terminal = Console(force_terminal=True, width=width, file=io.StringIO(), color_system=None)
    monkeypatch.setattr(console, "out", terminal)
    step = ConsoleStep(TITLE, so_far=None)
    step._bar.show(1200, 60_000, NOTE)
    with terminal.capture() as captured:
        for part in step._bar.get_renderables():
            terminal.print(part)
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_counts_and_note_are_whole_at_any_usual_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heading, line = shown_at(width, monkeypatch)
    assert heading.strip() == f"… {TITLE}"
    assert "1,200/60,000" in line
    assert NOTE in line


def test_in_a_log_a_step_tells_where_it_goes_on_and_its_first_report(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=log, width=80, soft_wrap=True))
    step = ConsoleStep("Train the model", so_far="at step 20 of 60")
    with step as progress:
        progress(20, 60, "starting the workers")
        progress(21, 60, NOTE)
    step.finished(StepRecord(step="train", summary="60 steps", seconds=3, continued="at step 20 of 60"))
    assert log.getvalue().splitlines() == [
        "… Train the model (continuing at step 20 of 60)",
        "    20 of 60 starting the workers",
        "✓ Train the model (3 s, continued at step 20 of 60)",
        "    60 steps",
    ]
    assert took(StepRecord(step="train", summary="", seconds=3)) == "3 s"


def test_a_long_step_is_told_of_often_at_first_and_less_so_later() -> None:
    schedule = NoteSchedule(started=0)
    told = [now for now in range(7 * 24 * 3600) if schedule.is_due(now)]  # a report every second for a week
    assert told[:4] == [0, 10, 20, 30]
    assert max(later - before for before, later in itertools.pairwise(told)) == console.LONGEST_SILENCE_S
    assert len(told) < 1100


def test_an_interrupted_step_says_at_once_that_the_key_was_heard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), ConsoleStep("Train the model", so_far=None):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stopping: Train the model …\n"


def test_help_does_not_wait_for_torch_or_ray() -> None:
    code = "import sys, pipeline.cli, serving.tenants; print(sorted({'torch', 'ray', 'mlflow', 'timm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
