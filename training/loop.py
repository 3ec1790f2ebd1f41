"""The training loop of one worker: the same function under Ray Train and torchrun, for one rank or many."""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from data_prep.manifest import ShardManifest
from infra import storage
from infra.config import content_hash
from infra.errors import HyperClipError
from infra.tracking import Tracker
from training.bundle import BUNDLE_NAME, save_bundle
from training.checkpoint import TrainState, load_newest, remove_old, save_checkpoint
from training.config import TrainConfig, TrainRequest
from training.data import TrainingBatches
from training.engine import Engine
from training.model.hyperclip import HyperClip
from training.model.registry import model_config
from training.model_card import model_card
from training.objective import ContrastiveObjective
from training.schedule import learning_rate_at
from training.shard_reader import open_shards

logger = logging.getLogger(__name__)

OnMetrics = Callable[[int, dict[str, float]], None]
"""Called on rank 0 with the step and its metrics."""


@dataclass(frozen=True)
class Rank:
    """This worker among the others."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0


def train(request: TrainRequest, *, on_metrics: OnMetrics) -> None:
    """Train to the end, from the newest good checkpoint when there is one.  The process group must be up.

    Leaves under `request.output_uri`: `checkpoints/`, `metrics.jsonl` and, last, `bundle/`.

    Raises:
        HyperClipError: the loss stopped being finite.
        BadInputError, CorruptArtefactError: the shards cannot be used.
    """
    config = request.config
    rank = Rank(dist.get_rank(), dist.get_world_size(), _device(config))
    torch.set_num_threads(config.workers.threads)
    reader = open_shards(request.shards_uri, cache_bytes=int(config.loader_cache_gb * 1e9))
    batches = TrainingBatches(reader, config, rank=rank.rank, world_size=rank.world_size)
    torch.manual_seed(config.seed)
    model = HyperClip(model_config(config.model))
    objective = ContrastiveObjective(model, config.conditioning, seed=config.seed, autocast=config.precision == "bf16")
    engine = Engine(objective, config, device=rank.device)
    checkpoints_uri = storage.join(request.output_uri, "checkpoints")
    config_hash = training_hash(config, reader.manifest)

    # precedence: 1. this run's own newest checkpoint, 2. scratch
    resumed = load_newest(checkpoints_uri, config_hash=config_hash)
    if resumed:
        state, full = resumed
        engine.load_full_state(full, optimizer_step=state.step)
        logger.info("resuming at step %d of %d", state.step, config.num_steps)
    else:
        state = TrainState(seed=config.seed, config_hash=config_hash)

    log = MetricsLog(request, first_step=state.step) if rank.leads else None
    samples = batches.starting_at(state.next_batch)
    while state.step < config.num_steps:
        started = time.perf_counter()
        waited, loss, output = 0.0, torch.zeros((), device=rank.device), None
        for accumulated in range(config.accumulation_steps):
            before = time.perf_counter()
            batch = next(samples)
            waited += time.perf_counter() - before
            output = engine.train_batch(batch, step=state.step, batch_number=state.next_batch + accumulated)
            loss += output.loss.detach() / config.accumulation_steps
        assert output is not None
        loss = _mean_over_ranks(loss)
        if not torch.isfinite(loss):
            raise HyperClipError(
                f"loss is {loss.item()} at step {state.step}; lower optimizer.learning_rate or look at the data"
            )
        seconds = time.perf_counter() - started
        if log and (state.step % config.log_every_steps == 0 or state.step + 1 == config.num_steps):
            metrics = {
                "loss": loss.item(),
                "learning_rate": learning_rate_at(state.step, config.optimizer, num_steps=config.num_steps),
                "grad_norm": engine.grad_norm,
                "logit_scale": model.logit_scale.item(),
                "logit_bias": model.logit_bias.item(),
                "delta_rms": output.delta_rms.item(),
                "delta_variation": output.delta_variation.item(),
                "samples_per_second": config.contrastive_batch_size * config.accumulation_steps / seconds,
                "data_wait_share": waited / seconds,
            }
            log.add(state.step, metrics)
            on_metrics(state.step, metrics)
        state = advanced(state, config)
        if state.step % config.checkpoint.every_steps == 0 or state.step == config.num_steps:
            full = engine.full_state()  # every rank takes part, one writes
            if log:
                log.write()
                save_checkpoint(checkpoints_uri, state, full)
                remove_old(checkpoints_uri, keep=config.checkpoint.keep)
    if rank.leads:
        _write_bundle(request, checkpoints_uri, config_hash)
    dist.barrier()


def advanced(state: TrainState, config: TrainConfig) -> TrainState:
    """The state after one more optimizer step."""
    return state.rebuilt(
        step=state.step + 1,
        next_batch=state.next_batch + config.accumulation_steps,
        samples_seen=state.samples_seen + config.contrastive_batch_size * config.accumulation_steps,
    )


def training_hash(config: TrainConfig, manifest: ShardManifest) -> str:
    """Which run a checkpoint belongs to: the configuration and the shards."""
    return content_hash({"config": config.identity(), "shards": [shard.sha256 for shard in manifest.shards]})


class MetricsLog:
    """`metrics.jsonl`, one line per logged step, and the same in MLflow where a run is given.

    The file is written with each checkpoint: a killed run loses only lines of steps that it will do again.
    """

    def __init__(self, request: TrainRequest, *, first_step: int) -> None:
        self._uri = metrics_uri(request.output_uri)
        self._run_id = request.run_id
        self._tracker = Tracker(request.tracking) if request.tracking and request.run_id else None
        self._records = [record for record in read_metrics(request.output_uri) if record["step"] < first_step]

    def add(self, step: int, metrics: dict[str, float]) -> None:
        self._records.append({"step": step, **metrics})
        if self._tracker and self._run_id:
            self._tracker.log_metrics(self._run_id, metrics, step=step)

    def write(self) -> None:
        storage.write_atomic(self._uri, "".join(json.dumps(record) + "\n" for record in self._records))


def metrics_uri(output_uri: str) -> str:
    return storage.join(output_uri, "metrics.jsonl")


def read_metrics(output_uri: str) -> list[dict[str, float]]:
    """What a run has logged, one dictionary a logged step; empty before its first checkpoint."""
    uri = metrics_uri(output_uri)
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines()] if storage.exists(uri) else []


def _write_bundle(request: TrainRequest, checkpoints_uri: str, config_hash: str) -> None:
    """The bundle comes from the checkpoint on disk, so that what is shipped is what can be resumed."""
    newest = load_newest(checkpoints_uri, config_hash=config_hash)
    assert newest is not None
    state, full = newest
    config = request.config
    model = HyperClip(model_config(config.model))
    model.load_state_dict({**full.parameters, **full.buffers})
    with tempfile.TemporaryDirectory(prefix="hyperclip-bundle-") as temporary:
        folder = Path(temporary)
        save_bundle(
            folder,
            model,
            preprocess=config.preprocess,
            templates=config.templates,
            model_card=model_card(config, state),
            metrics={"steps": float(state.step), "samples_seen": float(state.samples_seen)},
        )
        storage.publish_folder(folder, storage.join(request.output_uri, "bundle"), last=BUNDLE_NAME)


def _mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    if dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value / dist.get_world_size()


def _device(config: TrainConfig) -> torch.device:
    if not config.workers.use_gpu:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
