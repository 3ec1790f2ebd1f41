"""The process that measures a checkpoint's zero-shot accuracy while training goes on.

python -m training.evaluation.checkpoint_evaluation REQUEST.json

It ends when its standard input does, for whoever started it holds the other end and may be killed.
"""

import logging
import os
import sys
import threading
from pathlib import Path

import torch

from infra import storage
from infra.config import StrictModel
from infra.errors import HyperClipError
from training.bundle import Bundle
from training.checkpoint import load_checkpoint, read_marker
from training.config import TrainConfig
from training.evaluation.shard_set import shard_set
from training.evaluation.zero_shot import EvaluationConfig, evaluate_zero_shot
from training.model.hyperclip import HyperClip
from training.shard_reader import open_shards
from training.tokenizer import Tokenizer

LOW_PRIORITY = 10


class CheckpointEvaluation(StrictModel):
    """What is evaluated, on what, and where the figures go."""

    checkpoint_uri: str
    shards_uri: str
    config: TrainConfig
    result_path: str


def evaluate_checkpoint(request: CheckpointEvaluation) -> dict[str, float]:
    """Accuracy by arm.

    Raises:
        HyperClipError: the checkpoint or the shards cannot be used, or hold too few concepts for a task.
    """
    config, schedule = request.config, request.config.evaluation
    _, full = load_checkpoint(request.checkpoint_uri)
    model = HyperClip(config.architecture())
    model.load_state_dict({**full.parameters, **full.buffers})
    bundle = Bundle(
        model=model.requires_grad_(False).eval(),
        tokenizer=Tokenizer(),
        preprocess=config.preprocess,
        templates=config.templates,
        metrics={},
        digest=read_marker(request.checkpoint_uri).digest,
    )
    result = evaluate_zero_shot(
        [bundle],
        shard_set(open_shards(request.shards_uri)),
        EvaluationConfig(ways=(schedule.num_ways,), kinds=("random",), num_tasks=schedule.num_tasks, recall_at=(), num_shown=0),
        progress=lambda *_: None,
    )
    return {name: value for name, value in result.metrics.items() if name.startswith("accuracy_")}


class EvaluationFigures(StrictModel):
    """The result file."""

    metrics: dict[str, float]


def _end_with_standard_input() -> None:
    """In the background.  Not by a signal at the parent's death: Linux sends it when the *thread* that forked has ended."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    _end_with_standard_input()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.nice(LOW_PRIORITY)
    torch.set_num_threads(1)
    request = CheckpointEvaluation.model_validate_json(Path(arguments[0]).read_bytes())
    try:
        metrics = evaluate_checkpoint(request)
    except HyperClipError as error:
        logging.error("%s", error)
        return error.exit_code
    storage.write_atomic(request.result_path, EvaluationFigures(metrics=metrics).model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
