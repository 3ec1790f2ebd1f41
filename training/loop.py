"""The training loop of one worker: the same function under Ray Train and torchrun, for one rank or many."""

import logging
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from data_prep.manifest import ShardManifest
from infra import artefacts, storage
from infra.config import content_hash
from training.bundle import BUNDLE_NAME, save_bundle
from training.checkpoint import (
    CheckpointManifest,
    TrainState,
    checkpoint_uri,
    describe_checkpoint,
    load_checkpoint,
    load_newest,
)
from training.checkpointer import Checkpointer
from training.config import TrainConfig, TrainRequest
from training.data import TrainingBatches
from training.distillation import read_teacher
from training.engine import Engine
from training.evaluation.during_training import CheckpointEvaluator
from training.health import HealthWindow
from training.initial import read_initial, start_from
from training.interval import Interval, peak_memory
from training.metrics_log import MetricsLog
from training.model.hyperclip import HyperClip
from training.model_card import model_card
from training.objective import ContrastiveObjective
from training.schedule import rate_of_step
from training.shard_reader import open_shards

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
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
        HyperClipError: a loss or gradient stopped being finite, or a checkpoint could not be saved.
        BadInputError, CorruptArtefactError: the shards, or the model to start from, cannot be used.
    """
    config = request.config
    rank = Rank(dist.get_rank(), dist.get_world_size(), _device(config))
    torch.set_num_threads(config.workers.threads)
    reader = open_shards(request.shards_uri, cache_bytes=int(config.loader_cache_gb * 1e9))
    batches = TrainingBatches(reader, config, rank=rank.rank, world_size=rank.world_size)
    initial = read_initial(config.init_from) if config.init_from else None
    teacher = read_teacher(config, device=rank.device)
    torch.manual_seed(config.seed)  # after all that draws random numbers by being built
    model = HyperClip(config.architecture())
    if initial and config.init_from:
        start_from(model, initial, uri=config.init_from)
    objective = ContrastiveObjective(
        model, config.conditioning, seed=config.seed, autocast=config.precision == "bf16", teacher=teacher
    )
    engine = Engine(objective, config, device=rank.device)
    checkpoints_uri = storage.join(request.output_uri, CHECKPOINTS)
    config_hash = training_hash(
        config,
        reader.manifest,
        init_digest=initial.digest if initial else None,
        teacher_digest=teacher.digest if teacher else None,
    )
    state = _start(engine, checkpoints_uri, TrainState(seed=config.seed, config_hash=config_hash))

    with ExitStack() as stack:
        recorder = stack.enter_context(Recorder(request, checkpoints_uri, state, on_metrics)) if rank.leads else None
        health = HealthWindow(reader, first_step=state.step, device=rank.device)
        interval = Interval()
        samples = batches.starting_at(state.next_batch)
        while state.step < config.num_steps:
            torch.manual_seed(step_seed(config.seed, step=state.step, rank=rank.rank))
            loss, output, indices = torch.zeros((), device=rank.device), None, []
            for accumulated in range(config.accumulation_steps):
                with interval.waiting_for("data"):
                    batch = next(samples)
                output = engine.train_batch(batch, step=state.step, batch_number=state.next_batch + accumulated)
                loss += output.loss.detach() / config.accumulation_steps
                indices.append(batch.sample_index)
            assert output is not None
            health.add(loss=loss, grad_norm=engine.grad_norm, samples=torch.cat(indices))
            interval.step_done(samples=config.contrastive_batch_size * config.accumulation_steps)

            last = state.step + 1 == config.num_steps
            logged = last or state.step % config.log_every_steps == 0
            saved = last or (state.step + 1) % config.checkpoint.every_steps == 0
            if recorder and saved:
                with interval.waiting_for("checkpoint"):
                    recorder.checkpointer.wait()
            if logged or saved:  # before a checkpoint, so that none holds what a bad step left
                loss_of_all = health.check(problem=recorder.checkpointer.problem if recorder else None)
            if recorder and logged:
                metrics = {
                    "loss": loss_of_all,
                    "learning_rate": rate_of_step(state.step, config),
                    "grad_norm": engine.grad_norm.item(),
                    "logit_scale": output.logit_scale.item(),
                    "logit_bias": output.logit_bias.item(),
                    "delta_rms": output.delta_rms.item(),
                    "delta_variation": output.delta_variation.item(),
                    "delta_penalty": output.delta_penalty.item(),
                    "neutral_loss": output.neutral_loss.item(),
                    "routing_loss": output.routing_loss.item(),
                    "distillation_loss": output.distillation_loss.item(),
                    **interval.take(),
                    **peak_memory(rank.device),
                }
                with interval.waiting_for("tracking"):
                    recorder.log(state.step, metrics)
            state = advanced(state, config)
            if saved:
                with interval.waiting_for("checkpoint"):
                    if recorder:
                        recorder.checkpointer.save(state, engine)
                    else:
                        engine.join_full_state()
        if recorder:
            recorder.checkpointer.wait()
        health.check(problem=recorder.checkpointer.problem if recorder else None)
        if rank.leads:
            _write_bundle(request, checkpoint_uri(checkpoints_uri, state.step))
        dist.barrier()


class Recorder:
    """What rank 0 keeps of a run: checkpoints, metrics, evaluations.  Use as a context: leaving it waits for all of them."""

    def __init__(self, request: TrainRequest, checkpoints_uri: str, state: TrainState, on_metrics: OnMetrics) -> None:
        self._on_metrics = on_metrics
        self._log = MetricsLog(request, first_step=state.step)
        self._evaluator = CheckpointEvaluator(request)
        self.checkpointer = Checkpointer(
            checkpoints_uri,
            keep=request.config.checkpoint.keep,
            on_saving=self._log.persist,
            on_saved=self._saved,
            in_use=self._evaluator.in_use,
        )
        if state.step:  # a killed run may have got no further than this checkpoint's marker
            self._saved(describe_checkpoint(checkpoint_uri(checkpoints_uri, state.step)))

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: object) -> None:
        self.checkpointer.__exit__(*error)
        if error[0] is None:
            self._note(self._evaluator.finish())
        self._evaluator.close()
        self._log.close()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._log.add(step, metrics)
        self._note(self._evaluator.take())
        self._on_metrics(step, metrics)

    def _saved(self, manifest: CheckpointManifest) -> None:
        self._log.record_checkpoint(manifest)
        self._evaluate_if_due(manifest.state.step, manifest.uri)

    def _evaluate_if_due(self, step: int, uri: str) -> None:
        if self._evaluator.is_due(step) and step not in self._log.evaluated_steps:
            self._evaluator.start(step, uri)

    def _note(self, evaluated: tuple[int, dict[str, float]] | None) -> None:
        if evaluated:
            self._log.add_evaluation(*evaluated)


def advanced(state: TrainState, config: TrainConfig) -> TrainState:
    """The state after one more optimizer step."""
    return state.rebuilt(
        step=state.step + 1,
        next_batch=state.next_batch + config.accumulation_steps,
        samples_seen=state.samples_seen + config.contrastive_batch_size * config.accumulation_steps,
    )


def step_seed(seed: int, *, step: int, rank: int) -> int:
    """For torch's generators at each step, so that a resumed run needs no state of theirs, at any world size."""
    return int(np.random.SeedSequence((seed, 4, step, rank)).generate_state(1, np.uint64)[0])


def training_hash(
    config: TrainConfig, manifest: ShardManifest, *, init_digest: str | None, teacher_digest: str | None = None
) -> str:
    """Which run a checkpoint belongs to: the configuration, the shards, and the models it started and learns from, wherever
    these lie."""
    identity = config.identity(init_from=init_digest, teacher=teacher_digest)
    return content_hash({"config": identity, "shards": [shard.sha256 for shard in manifest.shards]})


def _start(engine: Engine, checkpoints_uri: str, scratch: TrainState) -> TrainState:
    """Where the run goes on.  Precedence: 1. this run's own newest good checkpoint, 2. `init_from`, 3. scratch."""
    resumed = load_newest(checkpoints_uri, config_hash=scratch.config_hash)
    if resumed is None:
        return scratch
    state, full = resumed
    engine.load_full_state(full, optimizer_step=state.step)
    logger.info("resuming at step %d", state.step)
    return state


def _write_bundle(request: TrainRequest, final_checkpoint_uri: str) -> None:
    """The bundle comes from the checkpoint on disk, so that what is shipped is what can be resumed."""
    state, full = load_checkpoint(final_checkpoint_uri)
    config = request.config
    model = HyperClip(config.architecture())
    model.load_state_dict({**full.parameters, **full.buffers})
    if model.hypernetwork is not None:
        model.hypernetwork.weaken(config.delta_share)
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
        artefacts.publish_folder(folder, storage.join(request.output_uri, "bundle"), last=BUNDLE_NAME)


def _device(config: TrainConfig) -> torch.device:
    if not config.workers.use_gpu:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # whoever started the worker has chosen it
