"""`kill -9` of `hyperclip run` in any of its steps: the next run ends in the same result and repeats nothing that was done.

One undisturbed run is the reference.  Then, in a workspace of its own, a run is killed in one step after the other; the next
run starts at once, while processes of the killed one are still dying, and the last one goes to its end.  The result must be
that of the reference, byte for byte: shards, bundle, evaluation, edge package, predictions; and one registered version.
Half the kills hit the driver alone, half its whole process group.  Linux only.
"""

import hashlib
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import RunConfig, load_run_config
from pipeline.runner import plan
from pipeline.steps import RECORD_NAME, PlannedStep, StepRecord
from tests.chaos._processes import DIES_WITHIN_S, MARK, DeathWatch
from tests.result import chaos_arguments, chaos_result, environment, measure
from training.metrics_log import read_metrics

CONFIG = Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml"
STRUCK_STEPS = ("download-train", "curate-train", "shard-train", "train", "evaluate", "register", "export", "serve")
NUM_STEPS, CHECKPOINT_EVERY = 40, 5
SETTINGS = (
    "training.model=hyperclip_test",
    f"training.num_steps={NUM_STEPS}",
    "training.contrastive_batch_size=64",
    "training.loader_workers=1",
    "training.log_every_steps=5",
    "training.conditioning.start_step=10",
    f"training.checkpoint={{every_steps: {CHECKPOINT_EVERY}, keep: 100}}",
    "training.workers.threads=1",
    "evaluation={ways: [10], num_tasks: 10, num_shown: 4}",
    "showcase.num_pictures=4",
)
STEP_BEGINS_WITHIN_S = 300
POLL_S = 0.01

Files = dict[Path, tuple[str, int]]
"""Hash and time of writing: a step done again would leave the one, never the other."""


class Strike(NamedTuple):
    step: str
    """The one that was really under way."""
    whole_group: bool
    done_before: Files


class Workspace:
    """Runs of one configuration in one folder."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.folder = folder
        self.settings = (*SETTINGS, f"workspace={folder}", *(f"datasets.{name}.source.port={port}" for name in DATASETS))
        self.config: RunConfig = load_run_config(CONFIG, self.settings)
        self.planned: list[PlannedStep] = plan(self.config)

    def folder_of(self, step: str) -> Path:
        return next(Path(entry.output_uri) for entry in self.planned if entry.step.name == step)

    def records(self) -> dict[str, StepRecord]:
        return {entry.step.name: entry.record for entry in self.planned if entry.record}

    def done(self) -> Files:
        """What must never be written again: the records of finished steps, and finished checkpoints."""
        files = [Path(entry.output_uri) / RECORD_NAME for entry in self.planned]
        files += (self.folder_of("train") / "checkpoints").glob("*/checkpoint.json")
        return {path: (_sha256(path), path.stat().st_mtime_ns) for path in files if path.is_file()}

    @contextmanager
    def running(self, mark: str) -> Iterator[subprocess.Popen[bytes]]:
        """The command, in a process group of its own."""
        arguments = [argument for setting in self.settings for argument in ("--set", setting)]
        with (self.folder.with_suffix(".log")).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "run", str(CONFIG), *arguments],
                env={**os.environ, MARK: mark},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def run_to_end(self, mark: str) -> bool:
        with self.running(mark) as process:
            return process.wait() == 0


DATASETS = ("train", "evaluation")


def strike(
    workspace: Workspace, step: str, *, mark: str, delay_s: float, whole_group: bool, rng: random.Random
) -> Strike | None:
    """Start a run and kill it some time after `step` has begun; None when it had ended by itself."""
    with workspace.running(mark) as process:
        _wait_until(workspace.folder_of(step).is_dir, process)
        if step == "train" and rng.random() < 0.8:  # most of that step is start-up: strike between or in checkpoints
            number = rng.randrange(CHECKPOINT_EVERY, NUM_STEPS - CHECKPOINT_EVERY, CHECKPOINT_EVERY)
            _wait_until((workspace.folder_of(step) / "checkpoints" / f"step-{number:08d}").is_dir, process)
            delay_s = rng.random() * 0.3
        _wait_until(lambda: False, process, timeout_s=delay_s)
        if process.poll() is not None:
            return None
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
    done = workspace.done()
    struck = next(entry.step.name for entry in workspace.planned if Path(entry.output_uri) / RECORD_NAME not in done)
    return Strike(struck, whole_group, done)


def outcome(workspace: Workspace) -> dict[str, Any]:
    """The result of a run, without times, addresses and ids."""
    kept = ("manifest.json", "bundle.json", "evaluation.json", "predictions.json", "model.onnx", "labels.json")
    files = {
        f"{entry.step.name}/{path.relative_to(entry.output_uri)}": _sha256(path)
        for entry in workspace.planned
        for path in sorted(Path(entry.output_uri).rglob("*"))
        if path.name in kept
    }
    losses = [(record["step"], record["loss"]) for record in read_metrics(str(workspace.folder_of("train")))]
    # one folder a step; the hashes of those that read the tracking address differ between workspaces
    folders = sorted(re.sub(r"-[0-9a-f]{12}$", "", path.name) for path in workspace.folder.iterdir() if path.is_dir())
    return {"files": files, "losses": losses, "folders": folders, **_tracked(workspace)}


def _tracked(workspace: Workspace) -> dict[str, Any]:
    """What MLflow holds."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=workspace.config.resolved_tracking.uri)
    experiment = client.get_experiment_by_name(workspace.config.resolved_tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    training = next(run.info.run_id for run in runs if run.info.run_name == "train")
    (model,) = client.search_registered_models()
    versions = client.search_model_versions(f"name = '{model.name}'")
    return {
        "runs": sorted((run.info.run_name, run.info.status) for run in runs),
        "metrics": sorted((row.step, row.value) for row in client.get_metric_history(training, "loss")),
        "logged_models": [str(logged.status) for logged in client.search_logged_models([experiment.experiment_id])],
        "versions": [(version.version, dict(version.tags)) for version in versions],
        "aliases": dict(model.aliases),
        "model_tags": dict(model.tags),
    }


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return [f"{key}: {expected[key]} expected, {found[key]} found" for key in expected if expected[key] != found[key]]


def _wait_until(condition: Any, process: subprocess.Popen[bytes], *, timeout_s: float = STEP_BEGINS_WITHIN_S) -> None:
    """Until it holds, the process has ended, or time is up."""
    ends = time.monotonic() + timeout_s
    while not condition() and process.poll() is None and time.monotonic() < ends:
        time.sleep(POLL_S)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=len(STRUCK_STEPS), quick_count=2)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the `finally` that end the run and remove its folder
    rng = random.Random(arguments.seed)
    problems: list[str] = []
    struck: Counter[str] = Counter()
    watches: list[DeathWatch] = []
    lost = failed_runs = repeats = 0
    with tempfile.TemporaryDirectory(prefix="run-kill-") as temporary:
        with socket.socket() as probe:  # the port is part of the URLs, so all runs share one
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        reference = Workspace(Path(temporary) / "undisturbed", port=port)
        started = time.monotonic()
        if not reference.run_to_end(f"{temporary}-reference"):
            _say(reference.folder.with_suffix(".log").read_text()[-3000:])
            raise SystemExit("the undisturbed run failed")
        undisturbed_s = time.monotonic() - started
        expected, seconds = outcome(reference), {name: record.seconds for name, record in reference.records().items()}
        _say(f"undisturbed run: {undisturbed_s:.0f} s; " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
        remaining = arguments.count
        while remaining > 0:
            chosen = rng.sample(STRUCK_STEPS, min(remaining, len(STRUCK_STEPS)))
            remaining -= len(chosen)
            repeats += 1
            workspace = Workspace(Path(temporary) / f"killed-{repeats}", port=port)
            before: Files = {}
            for number, step in enumerate(sorted(chosen, key=STRUCK_STEPS.index)):
                mark = f"{temporary}-{repeats}-{number}"
                # early: the reference paid for cold caches, and a step that is over cannot be struck
                delay_s = rng.random() * 0.3 * seconds[step]
                hit = strike(workspace, step, mark=mark, delay_s=delay_s, whole_group=rng.random() < 0.5, rng=rng)
                if hit is None:
                    problems.append(f"the run ended by itself before it could be killed in {step}")
                    continue
                struck[hit.step] += 1
                watches.append(DeathWatch(mark))
                lost += _changed(before, workspace, problems)
                before = hit.done_before
                _say(f"killed {'the group' if hit.whole_group else 'the driver'} in {hit.step}; {len(before)} things were done")
            if not workspace.run_to_end(f"{temporary}-{repeats}-end"):
                failed_runs += 1
                problems.append(f"the last run failed: {workspace.folder.with_suffix('.log').read_text()[-2000:]}")
                continue
            lost += _changed(before, workspace, problems)
            problems += differences(expected, outcome(workspace))
        for watch in watches:
            watch.join()
        left = [process for watch in watches for process in watch.left]
        problems += [f"alive {DIES_WITHIN_S} s after its run was killed: {process}" for process in left]
    for problem in problems:
        _say(f"PROBLEM {problem}")
    return chaos_result(
        "run_kill",
        injected=struck.total(),
        lost=lost,
        failed=len(problems),
        measures={
            "kills": measure(struck.total(), goal=(">=", arguments.count)),
            "finished_work_repeated": measure(lost, goal=("<=", 0)),
            "processes_left_behind": measure(len(left), goal=("<=", 0)),
            "last_process_gone_after": measure(max((watch.seconds for watch in watches), default=0.0), unit="s"),
            "undisturbed_run": measure(undisturbed_s, unit="s"),
        },
        struck=dict(struck),
        seed=arguments.seed,
        problems=problems,
        **environment("ray", "mlflow", "deepspeed", "torch"),
    )


def _changed(before: Files, workspace: Workspace, problems: list[str]) -> int:
    """Count what was done before a run and is gone or written anew after it."""
    now = workspace.done()
    changed = [path for path, was in before.items() if now.get(path) != was]
    problems += [f"{path.relative_to(workspace.folder)} was done and did not stay as it was" for path in changed]
    return len(changed)


if __name__ == "__main__":
    sys.exit(main())
