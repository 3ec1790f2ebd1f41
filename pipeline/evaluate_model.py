"""`hyperclip evaluate MODEL --dataset ...`: trained models on any pictures, without a run."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from infra.config import StrictModel, flattened, parse_config
from infra.errors import BadInputError
from pipeline.console import ConsoleStep
from pipeline.model_source import opened_bundle, tracker_of
from training.bundle import Bundle
from training.evaluation.open_set import open_evaluation_set
from training.evaluation.result import ZeroShotResult
from training.evaluation.result_files import log_result, write_result
from training.evaluation.webdataset_set import read_templates
from training.evaluation.zero_shot import EvaluationConfig, evaluate_zero_shot


class _Settings(StrictModel):
    """So that a setting has the name that it has in a run's configuration: `evaluation.ways`."""

    evaluation: EvaluationConfig = EvaluationConfig()


@dataclass(frozen=True)
class Finished:
    result: ZeroShotResult
    run_id: str | None
    """Of the MLflow run, where an MLflow is named."""


def evaluate_models(
    models: Sequence[str],
    datasets: Sequence[str],
    *,
    twins: Sequence[str],
    templates_file: Path | None,
    where: Sequence[str],
    names_from: Sequence[str],
    settings: Sequence[str],
    output: Path | None,
    tracking_uri: str | None,
    config: Path | None,
) -> Finished:
    """Evaluate, write the files, log to MLflow where one is named.

    Args:
        models: as `opened_bundle` takes them; several are the seeds of one recipe, none is the one that it takes then.
        settings: `evaluation.ways=[2,10]`.
        where: `COLUMN=VALUE` of the rows of parquet files.
        names_from: parquet files with the names of tasks of kind `held_out_among_known`.

    Raises:
        BadInputError: something of that cannot be used; said before anything is computed.
    """
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInputError(f"{output} exists and is not an empty folder; an evaluation gets a folder of its own")
    chosen = parse_config("{}", _Settings, source="--set", overrides=settings).evaluation
    templates = read_templates(str(templates_file)) if templates_file else None
    named = bool(tracking_uri or config or os.environ.get("MLFLOW_TRACKING_URI"))
    tracker = tracker_of(tracking_uri=tracking_uri, config=config) if named else None
    pictures = open_evaluation_set(datasets, readings=chosen.readings, only=parse_where(where), names_from=names_from)
    with ExitStack() as opened:

        def load(model: str | None) -> Bundle:
            return opened.enter_context(
                opened_bundle(model, tracking_uri=tracking_uri, config=config, named_by="hyperclip evaluate MODEL")
            )

        bundles, twin_bundles = [load(model) for model in models or (None,)], [load(twin) for twin in twins]
        with ConsoleStep(f"Evaluate on {len(pictures):,} pictures of {pictures.name}", so_far=None) as progress:
            result = evaluate_zero_shot(
                bundles,
                pictures,
                chosen,
                twins=twin_bundles,
                templates=templates,
                progress=lambda done, total: progress(done, total, "tasks"),
            )
    if output is not None:
        write_result(result, str(output))
    run_id = None
    if tracker is not None:
        named_models = ", ".join(models) or f"default: {bundles[0].digest}"
        params = {"models": named_models, "twins": ", ".join(twins), "dataset": ", ".join(datasets), **flattened(chosen)}
        run_id = tracker.start_run(f"evaluate on {pictures.name}", params=params)
        tracker.log_metrics(run_id, result.metrics)
        log_result(result, tracker, run_id)
        tracker.end_run(run_id)
    return Finished(result, run_id)


def parse_where(conditions: Sequence[str]) -> dict[str, str]:
    """`COLUMN=VALUE` as column -> value.  Raises BadInputError when one is of another form."""
    found = {}
    for condition in conditions:
        column, separator, value = condition.partition("=")
        if not separator or not column:
            raise BadInputError(f"--where {condition!r} is not of the form COLUMN=VALUE")
        found[column] = value
    return found
