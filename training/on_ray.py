"""Training under Ray Train: attempts that start again from the newest checkpoint, each with as many workers as fit.

Ray Train could retry by itself, but with the same number of workers, or with any number between two, and it must divide the
contrastive batch.  So an attempt is one Ray Train run of a fixed size: as many as the cluster can place at that moment.
"""

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import torch

from infra import storage
from infra.errors import HyperClipError
from training.config import TrainRequest, WorkersConfig, world_sizes
from training.health import StoppedError
from training.launch import COLLECTIVE_TIMEOUT
from training.loop import train

logger = logging.getLogger(__name__)

Progress = Callable[[int, dict[str, float]], None]
"""Called with the step and its metrics.  Steps after the newest checkpoint come again when an attempt failed."""
POLL_S = 0.5
FALLBACK_WAIT_S = 2.0
"""For a smaller number of workers: there is room for it or there is not, only the placement takes a moment."""


def train_on_ray(request: TrainRequest, *, progress: Progress) -> None:
    """Train on the connected cluster; after a lost worker or node, again from the newest checkpoint.

    Raises:
        HyperClipError: it failed more than `workers.max_failures` times (the workers' own reason is in the message), or in a
            way that would repeat itself (then it is the worker's own error), or there is no room for `workers.min_workers`.
    """
    config = request.config
    board = _start_board()
    ray_uri = storage.join(request.output_uri, "ray")
    failures = 0
    while True:
        num_workers = choose_num_workers(config.workers, contrastive_batch_size=config.contrastive_batch_size)
        error = _attempt(request, num_workers=num_workers, board=board, storage_uri=ray_uri, progress=progress)
        if error is None:
            break
        causes = _causes(error)
        for cause in causes:
            if isinstance(cause, HyperClipError) and not isinstance(
                cause, StoppedError
            ):  # the data, the configuration or the numbers: it would happen again
                raise cause from error
        failures += 1
        reason = "; ".join(dict.fromkeys(_one_line(cause) for cause in causes))
        if failures > config.workers.max_failures:
            raise HyperClipError(
                f"training failed {failures} time(s), at last with {num_workers} worker(s): {reason}"
            ) from error
        logger.warning("training failed and starts again (%d of %d): %s", failures, config.workers.max_failures, reason)
    storage.remove(ray_uri)  # Ray Train's own records; checkpoints and metrics are ours


def choose_num_workers(workers: WorkersConfig, *, contrastive_batch_size: int) -> int:
    """The largest world size that the cluster can place now.  It really places them, which also asks an autoscaler for nodes.

    Raises:
        HyperClipError: not even `min_workers` fit.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    sizes = world_sizes(contrastive_batch_size, most=workers.num_workers, least=workers.min_workers)
    for size in sizes:
        group = placement_group([_resources(workers)] * size, strategy="PACK")
        fits = group.wait(workers.wait_for_workers_s if size == workers.num_workers else FALLBACK_WAIT_S)
        remove_placement_group(group)
        if fits:
            if size < workers.num_workers:
                logger.warning("training with %d of %d workers: the cluster has no room for more", size, workers.num_workers)
            return size
    raise HyperClipError(
        f"the cluster has no room for {sizes[-1]} worker(s) of {_resources(workers)} each; free resources, add nodes or lower "
        f"workers.min_workers={workers.min_workers}"
    )


def _attempt(request: TrainRequest, *, num_workers: int, board: Any, storage_uri: str, progress: Progress) -> Exception | None:
    """One run of Ray Train; returns why it failed, or None."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    workers = request.config.workers
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"request": request.model_dump(mode="json"), "board": board},
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=workers.use_gpu, resources_per_worker=_resources(workers)
        ),
        torch_config=TorchConfig(
            backend="nccl" if workers.use_gpu else "gloo", timeout_s=int(COLLECTIVE_TIMEOUT.total_seconds())
        ),
        run_config=RunConfig(
            name=f"train-{os.getpid()}",
            storage_path=storage_uri,
            # every kind of retry is ours: the next attempt may need another number of workers
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
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
    if failures and not isinstance(failures[0], TrainingFailedError):
        raise failures[0]
    return failures[0] if failures else None  # type: ignore[return-value]


class ProgressBoard:
    """What rank 0 reports, held for the driver until it asks."""

    def __init__(self) -> None:
        self._reports: list[tuple[int, dict[str, float]]] = []

    def put(self, step: int, metrics: dict[str, float]) -> None:
        self._reports.append((step, metrics))

    def take(self) -> list[tuple[int, dict[str, float]]]:
        reports, self._reports = self._reports, []
        return reports


def _start_board() -> Any:
    """On the driver's own node: it must not be lost with another."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(ProgressBoard).remote()


def _worker(loop_config: dict[str, Any]) -> None:
    """One worker; Ray Train has set up the process group."""
    import ray.train.torch

    board = loop_config["board"]
    request = TrainRequest.model_validate(loop_config["request"])
    if request.config.workers.use_gpu:
        torch.cuda.set_device(ray.train.torch.get_device())
    train(request, on_metrics=lambda *report: board.put.remote(*report))


def _resources(workers: WorkersConfig) -> dict[str, float]:
    return {"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})}


def _causes(error: Exception) -> list[BaseException]:
    """What happened to the workers themselves; the error as it is when it was not theirs."""
    failures = getattr(error, "worker_failures", {})
    return [getattr(failure, "_base_exc", failure) for failure in failures.values()] or [error]


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
