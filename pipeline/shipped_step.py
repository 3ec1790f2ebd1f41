"""The step that asks the shipped model what the trained one is asked: the showcase pictures and the evaluation's tasks."""

from typing import Literal

import torch

from infra import storage
from infra.config import StrictModel
from pipeline.config import RunConfig, ShowcaseConfig
from pipeline.showcase_steps import ServedPrediction, pictures_of
from pipeline.steps import Step, StepContext, StepResult
from training.bundle import Bundle, load_bundle, read_bundle_manifest
from training.evaluation.result_files import log_result, write_result
from training.evaluation.shard_set import shard_set
from training.evaluation.zero_shot import EvaluationConfig, evaluate_zero_shot
from training.preprocess import preprocess
from training.shard_reader import ShardReader, open_shards
from training.shipped import MODEL_PAGE, shipped_model_folder
from training.specialize import specialize

ANSWERS_NAME = "answers.json"


class ShippedAnswers(StrictModel):
    """`answers.json`."""

    schema_version: Literal[1] = 1
    model_name: str
    bundle_digest: str
    predictions: tuple[ServedPrediction, ...]
    """Of the pictures that the service of the trained model is asked about, in their order."""

    @property
    def num_right(self) -> int:
        return sum(prediction.truth == prediction.predicted for prediction in self.predictions)


def shipped_step(config: RunConfig, showcase: ShowcaseConfig) -> Step:
    """Its address holds the digest of the shipped model, so that another one is asked anew."""
    return Step(
        name="shipped",
        title="Ask the shipped model the same",
        settings={
            "labels": showcase.model_dump(mode="json")["labels"],
            "num_pictures": showcase.num_pictures,
            "evaluation": _only_headline(config.evaluation).model_dump(mode="json"),
            "bundle_digest": read_bundle_manifest(shipped_model_folder()).digest,
        },
        reads=("shard-evaluation",),
        work=lambda context: _ask(context, showcase),
    )


def why_no_contest(config: RunConfig) -> str:
    """What has to be said where answers of the shipped model stand beside those of the trained one."""
    said = (
        "The shipped model was trained apart from this run, on pictures and for a time of its own, so this is no contest of "
        f"methods: it shows what comes with the project ({MODEL_PAGE})."
    )
    if config.datasets["evaluation"].source.kind == "sample":
        said += " It has not seen the artist of these pictures (Fluent Emoji, flat style) either."
    return said


def _only_headline(config: EvaluationConfig) -> EvaluationConfig:
    """The family of tasks that decides promotion, drawn as for the trained model, and nothing else: seconds."""
    kinds = config.kinds or ("random",)
    return config.rebuilt(ways=config.ways[:1], kinds=kinds[:1], distractor_share=0, readings={}, recall_at=(), num_shown=0)


def _ask(context: StepContext, showcase: ShowcaseConfig) -> StepResult:
    bundle = load_bundle(shipped_model_folder())
    reader = open_shards(context.inputs["shard-evaluation"])
    answers = ShippedAnswers(
        model_name=bundle.model.config.name, bundle_digest=bundle.digest, predictions=_predictions(bundle, reader, showcase)
    )
    storage.write_atomic(storage.join(context.output_uri, ANSWERS_NAME), answers.model_dump_json(indent=1))
    result = evaluate_zero_shot(
        [bundle],
        shard_set(reader, readings={}),
        _only_headline(context.config.evaluation),
        progress=lambda done, total: context.progress(done, total, "tasks"),
    )
    write_result(result, context.output_uri)
    log_result(result, context.tracker, context.run_id)
    headline = result.headline
    found = headline.accuracy["specialized"]
    return StepResult(
        summary=(
            f"{answers.model_name}, trained apart from this run: "
            f"{headline.family.num_names}-way zero-shot accuracy {found.mean:.1%} "
            f"(95 % interval {found.low:.1%} to {found.high:.1%}) in the same tasks; "
            f"{answers.num_right} of {len(answers.predictions)} pictures right"
        ),
        facts={"bundle_digest": bundle.digest},
        metrics={**result.metrics, "num_right": answers.num_right, "num_pictures": len(answers.predictions)},
    )


def _predictions(bundle: Bundle, reader: ShardReader, showcase: ShowcaseConfig) -> tuple[ServedPrediction, ...]:
    chosen = pictures_of(reader, showcase).pictures
    images = torch.stack([torch.from_numpy(preprocess(picture, bundle.preprocess)) for _, picture, _ in chosen])
    best = specialize(bundle, showcase.labels).scores(bundle, images).softmax.max(dim=1)
    return tuple(
        ServedPrediction(sample=sample, truth=record.captions[0], predicted=showcase.labels[place], score=score)
        for (sample, _, record), place, score in zip(chosen, best.indices.tolist(), best.values.tolist(), strict=True)
    )
