"""Steps that use the trained model as its users will: exported for a device, and served over HTTP."""

import logging
from collections import Counter
from typing import Literal, NamedTuple

from data_prep.manifest import SampleRecord
from infra import storage
from infra.config import StrictModel
from infra.errors import BadInputError, HyperClipError
from pipeline.config import RunConfig, ShowcaseConfig
from pipeline.model_steps import bundle_uri
from pipeline.steps import Step, StepContext, StepResult
from serving.client import ServingClient
from serving.config import ServingConfig
from serving.launch import running
from training.bundle import load_bundle
from training.export import export_package
from training.shard_reader import ShardReader, open_shards
from training.specialize import specialize

logger = logging.getLogger(__name__)

PREDICTIONS_NAME = "predictions.json"
TASKS = "tasks"
"""Folder in the workspace for the tasks of the service."""


class ServedPrediction(StrictModel):
    """What the service said about one evaluation picture."""

    sample: int
    """Number in the evaluation shards."""
    truth: str
    predicted: str
    score: float


class ServedPredictions(StrictModel):
    """`predictions.json`."""

    schema_version: Literal[1] = 1
    task_id: str
    model_version: str
    labels: tuple[str, ...]
    predictions: tuple[ServedPrediction, ...]

    @property
    def num_right(self) -> int:
        return sum(prediction.truth == prediction.predicted for prediction in self.predictions)


def showcase_steps(showcase: ShowcaseConfig) -> list[Step]:
    """Export and serve the classifier of the showcase labels."""
    settings = showcase.model_dump(mode="json", exclude={"beside_shipped"})
    return [
        Step(
            name="export",
            title="Export a specialized encoder to ONNX",
            settings=settings["labels"],
            reads=("train",),
            work=lambda context: _export(context, showcase),
        ),
        Step(
            name="serve",
            title="Serve, and classify over HTTP",
            settings=settings,
            reads=("register", "shard-evaluation"),
            work=lambda context: _serve(context, showcase),
            on_cluster=True,
        ),
    ]


def serving_config(config: RunConfig, *, alias: str, port: int | None = None) -> ServingConfig:
    """The service of a run: its registered model, its tasks in the run's workspace."""
    settings = config.serving
    return ServingConfig(
        tracking=config.resolved_tracking,
        model_name=config.name,
        alias=alias,
        task_store_uri=storage.join(config.workspace_uri, TASKS),
        **settings.rebuilt(port=settings.port if port is None else port).model_dump(),
    )


def _export(context: StepContext, showcase: ShowcaseConfig) -> StepResult:
    with storage.localized(bundle_uri(context.inputs["train"])) as folder:
        bundle = load_bundle(folder)
    package = storage.local_path(storage.join(context.output_uri, "package"))
    report = export_package(bundle, specialize(bundle, showcase.labels), package)
    certificate = report.certificate
    worst = max(max(vars(differences).values()) for differences in certificate.max_abs_difference.values())
    return StepResult(
        summary=f"{report.num_labels} labels in {package / 'model.onnx'}, {report.model_bytes / 1e6:.1f} MB, "
        f"scores within {worst:.0e} of the model's",
        facts={"package": str(package)},
    )


def _serve(context: StepContext, showcase: ShowcaseConfig) -> StepResult:
    reader = open_shards(context.inputs["shard-evaluation"])
    chosen = pictures_of(reader, showcase)
    if unseen := [label for label in showcase.labels if not chosen.matching[label]]:
        logger.warning(
            "no evaluation picture has the caption %s: %d of %d showcase.labels are not tried; put captions of your evaluation "
            "pictures there", ", ".join(map(repr, unseen)), len(unseen), len(showcase.labels),
        )  # fmt: skip
    version = str(context.facts["register"]["version"])
    # a port of its own: the service that people use may be up
    with running(serving_config(context.config, alias=version, port=0)) as base_url, ServingClient(base_url) as client:
        task = client.create_task(showcase.labels)
        found = []
        for number, (sample, picture, record) in enumerate(chosen.pictures):
            result = client.classify(task.task_id, [picture], top_k=1).results[0]
            if not result.predictions:
                raise HyperClipError(f"the service did not classify sample {sample}: {result.problem}")
            best = result.predictions[0]
            found.append(ServedPrediction(sample=sample, truth=record.captions[0], predicted=best.label, score=best.score))
            context.progress(number + 1, len(chosen.pictures), "pictures")
    served = ServedPredictions(
        task_id=task.task_id, model_version=task.model_version, labels=showcase.labels, predictions=tuple(found)
    )
    storage.write_atomic(storage.join(context.output_uri, PREDICTIONS_NAME), served.model_dump_json(indent=1))
    return StepResult(
        summary=f"{len(showcase.labels)} class names became an encoder; "
        f"{served.num_right} of {len(found)} pictures right over HTTP "
        f"({chosen.matching.total():,} of {len(reader):,} evaluation pictures show one of the names)",
        facts={"task_id": task.task_id},
        metrics={"num_right": served.num_right, "num_pictures": len(found)},
    )


class ChosenPictures(NamedTuple):
    pictures: list[tuple[int, bytes, SampleRecord]]
    """The first ones, with their number in the evaluation shards."""
    matching: Counter[str]
    """Evaluation pictures by label, chosen or not."""


def pictures_of(reader: ShardReader, showcase: ShowcaseConfig) -> ChosenPictures:
    """Evaluation pictures that show one of the labels.

    Raises:
        BadInputError: there is none.
    """
    wanted = set(showcase.labels)
    found = ChosenPictures([], Counter())
    for sample in range(len(reader)):
        picture, record = reader[sample]
        if record.captions[0] in wanted:
            found.matching[record.captions[0]] += 1
            if len(found.pictures) < showcase.num_pictures:
                found.pictures.append((sample, picture, record))
    if not found.pictures:
        raise BadInputError(
            f"none of the {len(reader):,} evaluation pictures has one of the captions {', '.join(showcase.labels)}; "
            f"change showcase.labels to captions that they have, for example: {', '.join(_some_captions(reader))}"
        )
    return found


def _some_captions(reader: ShardReader) -> list[str]:
    return list(dict.fromkeys(reader[sample][1].captions[0] for sample in range(min(50, len(reader)))))[:5]
