"""Steps from training shards to a registered model."""

import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from infra import storage
from infra.config import flattened
from infra.errors import BadInputError
from pipeline.config import RunConfig
from pipeline.inputs import check_inputs_unchanged, input_versions
from pipeline.steps import Step, StepContext, StepResult
from training.bundle import BUNDLE_NAME, Bundle, load_bundle
from training.checkpoint import newest_step
from training.config import TrainConfig, TrainRequest
from training.evaluation.evaluation_set import EvaluationSet
from training.evaluation.none_of_these import calibrate
from training.evaluation.result_files import log_result, read_result, write_result
from training.evaluation.shard_set import shard_set
from training.evaluation.zero_shot import evaluate_zero_shot
from training.loop import CHECKPOINTS
from training.metrics_log import read_metrics
from training.none_of_these import NONE_OF_THESE_NAME, NoneOfThese
from training.on_ray import train_on_ray
from training.publish import publish
from training.shard_reader import open_shards

logger = logging.getLogger(__name__)


def model_steps(config: RunConfig) -> list[Step]:
    """Train, evaluate, register."""
    return [
        Step(
            name="train",
            title="Train the model",
            settings=training_identity(config.training),
            reads=("shard-train",),
            watches=("shard-evaluation",) if config.training.evaluation.every_steps else (),
            work=_train,
            clean_start=False,
            so_far=lambda output_uri: _trained_so_far(output_uri, config.training.num_steps),
            params=flattened(config.training),
            on_cluster=True,
            check_done=check_inputs_unchanged,
        ),
        Step(
            name="evaluate",
            title="Evaluate on the held-out pictures",
            settings=config.evaluation.model_dump(mode="json"),
            reads=("train", "shard-evaluation"),
            work=_evaluate,
        ),
        Step(
            name="register",
            title="Register the model",
            settings={"name": config.name, "tracking": config.resolved_tracking.model_dump(mode="json")},
            reads=("train", "evaluate"),
            work=_register,
        ),
    ]


def training_identity(config: TrainConfig, *, init_from: str | None = None, teacher: str | None = None) -> dict[str, Any]:
    """What decides the numbers; the models that training reads are known by their content where they are local, else by their
    address.

    Args:
        init_from: what that model is known by instead, so that it need not be there yet.
        teacher: likewise.

    Raises:
        BadInputError: a local model is not there.
    """
    distillation = config.distillation
    return config.identity(
        init_from=init_from or _content(config.init_from),
        teacher=teacher or _content(distillation.teacher if distillation else None),
    )


def _content(bundle: str | None) -> str | None:
    """None for an address, which stands for itself."""
    return storage.fingerprint(storage.join(bundle, BUNDLE_NAME)) if bundle and storage.is_local(bundle) else None


def _train(context: StepContext) -> StepResult:
    config = context.config.training
    versions = input_versions([storage.join(uri, BUNDLE_NAME) for uri in config.bundle_uris])
    # workers may run in another folder
    if config.init_from:
        config = config.rebuilt(init_from=_absolute(config.init_from))
    if config.distillation:
        teacher = _absolute(config.distillation.teacher)
        config = config.rebuilt(distillation=config.distillation.rebuilt(teacher=teacher))
    open_shards(context.inputs["shard-train"])  # a damaged shard is named at once, before workers start and are started again
    request = TrainRequest(
        config=config,
        shards_uri=context.inputs["shard-train"],
        output_uri=context.output_uri,
        tracking=context.config.resolved_tracking,
        run_id=context.run_id,
        evaluation_shards_uri=context.inputs.get("shard-evaluation"),
    )
    context.progress(newest_step(_checkpoints(context.output_uri)) or 0, config.num_steps, "starting the workers")
    train_on_ray(
        request,
        progress=lambda step, metrics: context.progress(
            step + 1, config.num_steps, progress_note(metrics, steps_left=config.num_steps - step - 1)
        ),
    )
    last = read_metrics(context.output_uri)[-1]
    return StepResult(
        summary=f"{config.model}: {config.num_steps} steps of {config.contrastive_batch_size}, loss {last['loss']:.3f}",
        facts={"steps": config.num_steps, "model": config.model, "last": last, "input_versions": versions},
    )


def _absolute(uri: str) -> str:
    return str(Path(storage.local_path(uri)).absolute()) if storage.is_local(uri) else uri


def _trained_so_far(train_uri: str, num_steps: int) -> str | None:
    step = newest_step(_checkpoints(train_uri))
    return None if step is None else f"at step {step:,} of {num_steps:,}"


def _checkpoints(train_uri: str) -> str:
    return storage.join(train_uri, CHECKPOINTS)


def progress_note(metrics: Mapping[str, float], *, steps_left: int) -> str:
    """Loss, speed and time left, for people who wait."""
    left = timedelta(seconds=round(steps_left * metrics["step_seconds"]))
    return f"loss {metrics['loss']:.3f}, {metrics['samples_per_second']:,.0f} samples/s, {left} left"


def _evaluate(context: StepContext) -> StepResult:
    with storage.localized(bundle_uri(context.inputs["train"])) as folder:
        bundle = load_bundle(folder)
    reader = open_shards(context.inputs["shard-evaluation"])
    result = evaluate_zero_shot(
        [bundle],
        shard_set(reader, readings=context.config.evaluation.readings),
        context.config.evaluation,
        progress=lambda done, total: context.progress(done, total, "tasks"),
    )
    write_result(result, context.output_uri)
    log_result(result, context.tracker, context.run_id)
    calibrated = _calibrate(context, bundle, shard_set(reader, readings={}))
    headline = result.headline
    specialized, neutral = headline.accuracy["specialized"], headline.accuracy["neutral"]
    return StepResult(
        summary=(
            f"{headline.family.num_names}-way zero-shot accuracy {specialized.mean:.1%} "
            f"(95 % interval {specialized.low:.1%} to {specialized.high:.1%}; chance {headline.chance:.0%}; "
            f"neutral {neutral.mean:.1%}) on {headline.num_pictures:,} pictures in {headline.num_tasks} tasks"
        ),
        facts={"bundle_digest": bundle.digest, "none_of_these": calibrated and calibrated.figures[0].model_dump(mode="json")},
        metrics=result.metrics | _calibration_metrics(calibrated),
    )


def _calibrate(context: StepContext, bundle: Bundle, pictures: EvaluationSet) -> NoneOfThese | None:
    """Fit "none of these" on half of the names and keep it beside the bundle, so that whatever serves the bundle has it."""
    try:
        found = calibrate(
            bundle, pictures, progress=lambda done, total: context.progress(done, total, "tasks of none of these")
        )
    except BadInputError as error:
        logger.warning("no calibration of none of these: %s", error)
        return None
    uri = storage.join(bundle_uri(context.inputs["train"]), NONE_OF_THESE_NAME)
    storage.write_atomic(uri, found.model_dump_json(indent=1))
    return found


def _calibration_metrics(found: NoneOfThese | None) -> dict[str, float]:
    if found is None:
        return {}
    (measured,) = found.figures
    return {"none_of_these_auroc": measured.auroc, "none_of_these_ece": measured.ece}


def _register(context: StepContext) -> StepResult:
    result = read_result(context.inputs["evaluate"])
    with storage.localized(bundle_uri(context.inputs["train"])) as folder:
        version, decision = publish(
            context.tracker,
            run_id=context.run_id,
            bundle_folder=folder,
            name=context.config.name,
            result=result,
        )
    role = "champion" if decision.promoted else "candidate"
    return StepResult(
        summary=f"{version.name} version {version.version} is the {role}: {decision.reason}",
        facts={"name": version.name, "version": version.version, "role": role, "reason": decision.reason},
        metrics={"promoted": float(decision.promoted)},
    )


def bundle_uri(train_uri: str) -> str:
    return storage.join(train_uri, "bundle")
