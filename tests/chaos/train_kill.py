"""Training processes killed by SIGKILL at random moments, also while they write a checkpoint, and started again to the end.

Promise: losses and final weights are bit-equal to those of a run that nobody killed, and MLflow has each step once.

python -m tests.chaos.train_kill [--quick | --count N] [--seed S]
"""

import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from infra.errors import CorruptArtefactError
from infra.tracking import Tracker, TrackingConfig
from tests.result import chaos_arguments, chaos_result, environment, measure
from tests.training_runs import losses, request_of, run_worker, small_config, start_worker, write_shard
from training.checkpoint import MARKER, PARTS, STATE, checkpoint_uri, list_checkpoints, load_checkpoint, read_marker, step_of
from training.config import TrainRequest

NUM_STEPS = 16
CONFIG = small_config({"num_steps": NUM_STEPS, "checkpoint": {"every_steps": 2, "keep": 2}})
KILLS_PER_RUN = 5
POLL_S = 0.0002


@dataclass
class Tally:
    kills: int = 0
    torn_checkpoints: int = 0
    """Kills that left a checkpoint folder without its marker: they struck in the middle of a write."""
    runs: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    arguments = chaos_arguments(__doc__ or "", count=50, quick_count=3)
    tally = Tally()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hyperclip-train-kill-") as temporary:
        folder = Path(temporary)
        tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", artifact_uri=str(folder / "artifacts"))
        strike(folder, tally, count=arguments.count, seed=arguments.seed, tracker=Tracker(tracking))
    for problem in tally.problems:
        print(problem, file=sys.stderr)
    return chaos_result(
        "train_kill",
        injected=tally.kills,
        lost=0,
        failed=len(tally.problems),
        measures={
            "kills_during_a_checkpoint_write": measure(tally.torn_checkpoints, goal=(">=", 1)),
            "runs_bit_equal": measure(tally.runs - len({problem.partition(":")[0] for problem in tally.problems})),
            "seconds": measure(time.monotonic() - started, unit="s"),
        },
        problems=tally.problems,
        seed=arguments.seed,
        steps=NUM_STEPS,
        **environment("torch", "deepspeed", "mlflow", "safetensors"),
    )


def strike(folder: Path, tally: Tally, *, count: int, seed: int, tracker: Tracker | None) -> None:
    """Inject `count` kills, `KILLS_PER_RUN` into each run, and compare every run with one that was left alone."""
    rng = random.Random(seed)
    shards = write_shard(folder / "shards")
    whole = folder / "whole"
    status, said = run_worker(request_of(CONFIG, shards, whole))
    if status != 0:
        raise RuntimeError(f"the uninterrupted run failed:\n{said}")
    while tally.kills < count:
        output = folder / f"run-{tally.runs}"
        request = request_of(CONFIG, shards, output)
        if tracker:
            request = request.rebuilt(tracking=tracker.config, run_id=tracker.start_run(output.name))
        for _ in range(min(KILLS_PER_RUN, count - tally.kills)):
            kill_once(request, rng, tally)
        status, said = run_worker(request)
        tally.runs += 1
        found = differences(whole, output) if status == 0 else [f"ended with status {status}: {said[-2000:]}"]
        if tracker and request.run_id:
            found += doubled_or_lost(tracker, request.run_id, output)
        tally.problems += [f"{output.name}: {problem}" for problem in found]
        print(f"  {output.name}: {tally.kills} kills so far, {'; '.join(found) or 'bit-equal'}", file=sys.stderr, flush=True)
        shutil.rmtree(output)


def kill_once(request: TrainRequest, rng: random.Random, tally: Tally) -> None:
    """Start a worker and kill it: at a random step, or every other time in the middle of writing a checkpoint."""
    output = Path(request.output_uri)
    checkpoints = output / "checkpoints"
    first = max((step_of(uri) for uri in list_checkpoints(str(checkpoints)) if whole(uri)), default=0)
    target = rng.randrange(first, min(first + 4, request.config.num_steps))  # near, so that kills to come have steps left
    victim = rng.choice([MARKER, STATE, *(f"{part}.safetensors" for part in PARTS)])
    delay_s = rng.uniform(0, 0.03)

    def writing() -> bool:
        return next(checkpoints.glob(f"step-*/.{victim}.*.tmp"), None) is not None

    def stepped() -> bool:
        return (output / "metrics.jsonl").exists() and len(losses(output)) > target

    strike_at = writing if tally.kills % 2 == 0 else stepped
    process = start_worker(request, output.parent / f"{output.name}.log")
    while process.poll() is None and not strike_at():
        time.sleep(POLL_S)
    if strike_at is stepped:
        time.sleep(delay_s)
    if process.poll() is not None:
        return  # it ended before the kill
    process.send_signal(signal.SIGKILL)
    process.wait()
    tally.kills += 1
    torn = [step_of(uri) for uri in list_checkpoints(str(checkpoints)) if not whole(uri)]
    tally.torn_checkpoints += strike_at is writing and bool(torn)  # an older torn one may still be there
    print(f"  {output.name}: killed after {len(losses(output))} steps, torn: {torn or 'none'}", file=sys.stderr, flush=True)


def whole(uri: str) -> bool:
    try:
        read_marker(uri)
    except CorruptArtefactError:
        return False
    return True


def differences(expected: Path, found: Path) -> list[str]:
    """What is not bit-equal between two finished runs."""
    problems = []
    if losses(expected) != losses(found):
        problems.append(f"losses differ: {losses(expected)} and {losses(found)}")
    (left_state, left), (right_state, right) = (
        load_checkpoint(checkpoint_uri(str(run / "checkpoints"), NUM_STEPS)) for run in (expected, found)
    )
    if left_state != right_state:
        problems.append(f"state {left_state} and {right_state}")
    for part in PARTS:
        ours, theirs = getattr(left, part), getattr(right, part)
        if ours.keys() != theirs.keys():
            problems.append(f"{part} have other names")
        problems += [f"{part} {name} differs" for name in ours if not torch.equal(ours[name], theirs[name])]
    if (expected / "bundle/bundle.json").read_bytes() != (found / "bundle/bundle.json").read_bytes():
        problems.append("the bundle differs")
    return problems


def doubled_or_lost(tracker: Tracker, run_id: str, output: Path) -> list[str]:
    """Whether MLflow has the loss of each step once, with the value of metrics.jsonl, and every checkpoint's manifest."""
    found = sorted(tracker.metric_history(run_id, "loss"))
    problems = [] if found == list(enumerate(losses(output))) else [f"MLflow has the losses {found}"]
    manifests = tracker.artifact_names(run_id, "checkpoints")
    every = CONFIG.checkpoint.every_steps
    missing = {f"checkpoints/step-{step:08d}.json" for step in range(every, NUM_STEPS + 1, every)} - manifests
    return problems + ([f"MLflow lacks {sorted(missing)}"] if missing else [])


if __name__ == "__main__":
    sys.exit(main())
