"""Ctrl-C of the real command, as a terminal sends it, and SIGTERM, as whoever ends a container does."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_prep.sample.links import write_url_list
from infra.tracking import TrackingConfig

pytestmark = pytest.mark.integration
QUICKSTART = Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a script starts in the background ignores Ctrl-C, and so would everything that the tests start then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_request_to_end_stop_a_run_with_a_line_that_says_how_to_go_on(
    tmp_path: Path, new_tracking: Callable[[Path], TrackingConfig], number: signal.Signals
) -> None:
    new_tracking(tmp_path / "workspace")
    write_url_list(str(tmp_path / "urls.parquet"), split="evaluation", base_url="http://127.0.0.1:9")
    settings = (
        f"workspace={tmp_path}/workspace",
        f"datasets.train.source={{kind: url_list, uri: {tmp_path}/urls.parquet}}",
        "cluster.num_cpus=1",
    )
    command = [str(Path(sys.executable).with_name("hyperclip")), "run", str(QUICKSTART)]
    command += [part for setting in settings for part in ("--set", setting)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        told = iter(process.stdout.readline, "")
        assert next(told) == "… Download the train pictures\n"
        assert next(told).startswith("    0 of ")  # Ray is up, and tasks have begun
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.splitlines() == [
        "stopping: Download the train pictures …",
        "interrupted; run the same command again to continue",
    ]
    assert output == ""
