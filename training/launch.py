"""Starting a training worker without Ray: under torchrun, or alone.

torchrun --nproc-per-node 2 -m training.launch request.json
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from infra.config import parse_config
from infra.errors import BadInputError, HyperClipError
from training.config import TrainRequest
from training.loop import OnMetrics, train

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


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


def main(arguments: list[str]) -> int:
    """Entry point for torchrun: one argument, the request as a JSON file.  Progress goes to stdout, all else to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if len(arguments) != 1:
        logging.error("usage: torchrun ... -m training.launch REQUEST.json")
        return BadInputError.exit_code
    try:
        request = read_request(Path(arguments[0]))
        train_here(request, on_metrics=lambda step, metrics: _show(step + 1, request.config.num_steps, metrics))
    except HyperClipError as error:
        logging.error("%s", error)
        return error.exit_code
    return 0


def read_request(path: Path) -> TrainRequest:
    """The request in a JSON file.

    Raises:
        BadInputError: it cannot be read, or is not a request; every problem is named with its place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"the request {path} cannot be read: {error}") from error
    return parse_config(text, TrainRequest, source=str(path))  # JSON is YAML


def _show(steps: int, num_steps: int, metrics: dict[str, float]) -> None:
    sys.stdout.write(
        f"step {steps} of {num_steps}  loss {metrics['loss']:.4f}  {metrics['samples_per_second']:.0f} samples/s\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
