"""The steps of one run of a sweep: data, training, and an evaluation on each set of pictures, with every task's accuracy."""

from collections.abc import Mapping
from dataclasses import replace

from data_prep.curate import CurateConfig
from data_prep.dedup import DedupConfig
from data_prep.filters import FilterConfig
from infra import storage
from infra.config import StrictModel, content_hash, flattened
from pipeline.config import DatasetConfig, DatasetName, PicturesSource, RunConfig
from pipeline.data_steps import data_steps
from pipeline.model_steps import bundle_uri, model_steps
from pipeline.steps import PlannedStep, Step, StepContext, StepResult, plan_steps
from pipeline.sweep import EvaluationSetConfig, readings_of
from training.bundle import load_bundle
from training.evaluation.zero_shot import EvaluationConfig, evaluate_zero_shot
from training.shard_reader import open_shards

ACCURACIES_NAME = "accuracies.json"
KEEP_ALL = CurateConfig(
    filters=FilterConfig(
        min_side=None, max_aspect=None, min_caption_characters=None, max_caption_characters=None, min_caption_words=None
    ),
    dedup=DedupConfig(max_hamming_distance=None),
)
"""Pictures that were chosen for an evaluation are all evaluated on, but for those that are there twice."""


class TaskAccuracies(StrictModel):
    """Accuracies of one model on the tasks of one kind."""

    title: str
    """The kind for people, "10 names, random"."""
    chance: float
    readings: dict[str, tuple[float, ...]]
    """By reading, of each task, in the order in which they were drawn."""


class SetAccuracies(StrictModel):
    """`accuracies.json`: of one model on one evaluation set."""

    bundle_digest: str
    tasks_identity: str
    """SHA-256 of the pictures and of what draws the tasks: accuracies of two models are paired where it is the same only."""
    kinds: dict[str, TaskAccuracies]


def evaluation_step_name(set_name: str) -> str:
    return f"evaluate-{set_name}"


class SweepPlanner:
    """Plans runs; what their data come from is read and hashed once."""

    def __init__(self, sets: Mapping[str, EvaluationSetConfig]) -> None:
        self._sets = sets
        self._data: dict[str, list[Step]] = {}

    def plan(self, config: RunConfig, *, after: PlannedStep | None = None) -> list[PlannedStep]:
        """Every step of a run with its address, but those that nothing here reads.

        Args:
            after: training of the model that this one starts from, done or not.

        Raises:
            BadInputError: an input of the run is not there.
        """
        steps = [*self._data_steps(config, "train"), *self._data_steps(config, "evaluation"), _train_step(config, after)]
        for name, evaluation_set in self._sets.items():
            tasks = evaluation_set.tasks or config.evaluation
            if evaluation_set.uris:
                steps += self._parquet_steps(config, name, evaluation_set)
            steps.append(_evaluation_step(name, tasks, shards=f"shard-{name}" if evaluation_set.uris else "shard-evaluation"))
        needed: set[str] = set()
        for step in reversed(steps):
            if step.name == "train" or step.name.startswith("evaluate-") or step.name in needed:
                needed |= {step.name, *step.reads, *step.watches}
        return plan_steps([step for step in steps if step.name in needed], config.workspace_uri)

    def _data_steps(self, config: RunConfig, name: DatasetName) -> list[Step]:
        key = content_hash({"name": name, "dataset": config.datasets[name].model_dump(mode="json")})
        if key not in self._data:
            self._data[key] = data_steps(config, name)
        return self._data[key]

    def _parquet_steps(self, config: RunConfig, name: str, evaluation_set: EvaluationSetConfig) -> list[Step]:
        """The steps that make shards of a set's own pictures: those of the evaluation pictures of a run that has these."""
        source = PicturesSource(kind="pictures", uris=evaluation_set.uris)
        dataset = DatasetConfig(source=source, curate=KEEP_ALL)
        other = config.rebuilt(datasets={**config.datasets, "evaluation": dataset})
        return [_renamed(step, other, name) for step in self._data_steps(other, "evaluation")]


def _renamed(step: Step, config: RunConfig, name: str) -> Step:
    """A step of the evaluation pictures of another configuration, as one of the evaluation set of this name."""

    def renamed(old: str) -> str:
        return f"{old.removesuffix('-evaluation')}-{name}"

    def work(context: StepContext) -> StepResult:
        inputs = {old: context.inputs[renamed(old)] for old in step.reads}
        facts = {old: context.facts[renamed(old)] for old in step.reads}
        return step.work(replace(context, config=config, inputs=inputs, facts=facts))

    title = step.title.replace("evaluation", name)
    return replace(step, name=renamed(step.name), title=title, reads=tuple(map(renamed, step.reads)), work=work)


def _train_step(config: RunConfig, after: PlannedStep | None) -> Step:
    """Where it starts from another model, that one is known by the address of its training: it need not be there yet."""
    if after is None:
        (train,) = (step for step in model_steps(config) if step.name == "train")
        return train
    scratch = config.rebuilt(training=config.training.rebuilt(init_from=None))
    settings = {**scratch.training.identity(), "init_from": after.hash}
    return replace(_train_step(scratch, None), settings=settings, params=flattened(config.training))


def _evaluation_step(name: str, tasks: EvaluationConfig, *, shards: str) -> Step:
    return Step(
        name=evaluation_step_name(name),
        title=f"Evaluate on {name}",
        settings=tasks.model_dump(mode="json"),
        reads=("train", shards),
        work=lambda context: _evaluate(context, tasks, shards_uri=context.inputs[shards]),
    )


def _evaluate(context: StepContext, tasks: EvaluationConfig, *, shards_uri: str) -> StepResult:
    with storage.localized(bundle_uri(context.inputs["train"])) as folder:
        bundle = load_bundle(folder)
    reader = open_shards(shards_uri)
    result = evaluate_zero_shot(bundle, reader, tasks, progress=lambda done, total: context.progress(done, total, "tasks"))
    shards = [shard.sha256 for shard in reader.manifest.shards]
    chosen = readings_of(context.config.training.model)
    found = SetAccuracies(
        bundle_digest=bundle.digest,
        tasks_identity=content_hash({"shards": shards, "tasks": tasks.model_dump(mode="json")}),
        kinds={
            f"{way.num_ways}_way": TaskAccuracies(
                title=f"{way.num_ways} names",
                chance=way.chance,
                readings={reading: values for reading, values in way.task_accuracies.items() if reading in chosen},
            )
            for way in result.ways
        },
    )
    storage.write_atomic(storage.join(context.output_uri, ACCURACIES_NAME), found.model_dump_json(indent=1))
    return StepResult(summary=_summary(found), facts={"bundle_digest": bundle.digest}, metrics=metrics_of(found))


def metrics_of(found: SetAccuracies) -> dict[str, float]:
    """Mean accuracies, for MLflow."""
    return {
        f"accuracy_{kind}.{reading}": sum(values) / len(values)
        for kind, tasks in found.kinds.items()
        for reading, values in tasks.readings.items()
    }


def _summary(found: SetAccuracies) -> str:
    parts = []
    for tasks in found.kinds.values():
        means = ", ".join(f"{reading} {sum(values) / len(values):.1%}" for reading, values in tasks.readings.items())
        parts.append(f"{tasks.title}: {means}")
    return "; ".join(parts)
