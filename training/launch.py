"""Starting the training workers: under Ray Train, or under torchrun with the same worker function.

torchrun --nproc-per-node 2 -m training.launch request.json
"""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from infra.errors import HyperClipError
from training.config import TrainRequest
from training.loop import OnMetrics, train

Progress = Callable[[int, dict[str, float]], None]
COLLECTIVE_TIMEOUT = timedelta(minutes=10)
POLL_S = 0.5


def train_on_ray(request: TrainRequest, *, progress: Progress) -> None:
    """Run the workers under Ray Train on the connected cluster; lost workers are replaced and continue from the newest
    checkpoint.

    Raises:
        HyperClipError: training failed for good; the worker's own reason is in the message.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    workers = request.config.workers
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"request": request.model_dump(mode="json"), "board": board},
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
        ),
        torch_config=TorchConfig(
            backend="nccl" if workers.use_gpu else "gloo", timeout_s=int(COLLECTIVE_TIMEOUT.total_seconds())
        ),
        run_config=RunConfig(
            name=f"train-{os.getpid()}",
            storage_path=f"{request.output_uri}/ray",
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    )
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # carried to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        for step, metrics in ray.get(board.take.remote()):
            progress(step, metrics)
    if failures:
        error = failures[0]
        if isinstance(error, TrainingFailedError):
            raise HyperClipError(f"training failed: {_last_line(error)}") from error
        raise error


class ProgressBoard:
    """What rank 0 reports, held for the driver until it asks."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, dict[str, float]]] = []

    def put(self, step: int, metrics: dict[str, float]) -> None:
        self._reports.append((step, metrics))

    def take(self) -> list[tuple[int, dict[str, float]]]:
        reports, self._reports = self._reports, []
        return reports


def _ray_worker(loop_config: dict[str, Any]) -> None:
    """One worker; Ray Train has set up the process group."""
    board = loop_config["board"]
    train(TrainRequest.model_validate(loop_config["request"]), on_metrics=lambda *report: board.put.remote(*report))


def train_here(request: TrainRequest, *, on_metrics: OnMetrics) -> None:
    """Run this process as one worker, from torchrun's environment variables, or alone when there are none."""
    with _process_group(use_gpu=request.config.workers.use_gpu):
        train(request, on_metrics=on_metrics)


@contextlib.contextmanager
def _process_group(*, use_gpu: bool) -> Iterator[None]:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if "RANK" not in os.environ:
        os.environ.update(alone)
    if use_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if use_gpu else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()  # without it the process can abort at exit


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def main(arguments: list[str]) -> int:
    """Entry point for torchrun: one argument, the request as a JSON file."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if len(arguments) != 1:
        logging.error("usage: torchrun ... -m training.launch REQUEST.json")
        return 2
    try:
        request = TrainRequest.model_validate_json(Path(arguments[0]).read_bytes())
        train_here(request, on_metrics=lambda step, metrics: logging.info("step %d loss %.4f", step, metrics["loss"]))
    except (HyperClipError, OSError, ValueError) as error:
        logging.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
