"""The steps of one run of a sweep: data, training, and an evaluation on each set of pictures, with every task's accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from infra import storage
from infra.config import StrictModel, content_hash, flattened
from pipeline.config import DatasetName, RunConfig
from pipeline.data_steps import data_steps, dataset_order
from pipeline.model_steps import bundle_uri, model_steps, training_identity
from pipeline.steps import PlannedStep, Step, StepContext, StepResult, plan_steps
from pipeline.sweep import EvaluationSetConfig, readings_of
from training.bundle import load_bundle
from training.evaluation.evaluation_set import EvaluationSet
from training.evaluation.open_set import open_evaluation_set
from training.evaluation.result_files import log_result, write_result
from training.evaluation.zero_shot import EvaluationConfig, evaluate_zero_shot

ACCURACIES_NAME = "accuracies.json"


class TaskAccuracies(StrictModel):
    """Accuracies of one model on the tasks of one kind."""

    title: str
    """The kind for people, "10 names, random"."""
    chance: float
    readings: dict[str, tuple[float, ...]]
    """By reading, of each task, in the order in which they were drawn; of the only task, of each picture."""


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
        self._identities: dict[str, list[str]] = {}

    def plan(
        self, config: RunConfig, *, after: PlannedStep | None = None, teacher: PlannedStep | None = None
    ) -> list[PlannedStep]:
        """Every step of a run with its address, but those that nothing here reads.

        Args:
            after: training of the model that this one starts from, done or not.
            teacher: training of the one that it learns from besides.

        Raises:
            BadInputError: an input of the run is not there.
        """
        train = _train_step(config, after, teacher)
        steps = [*(step for name in dataset_order(config) for step in self._data_steps(config, name)), train]
        steps += [self._evaluation_step(config, name, found) for name, found in self._sets.items()]
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

    def _evaluation_step(self, config: RunConfig, name: str, evaluation_set: EvaluationSetConfig) -> Step:
        tasks = evaluation_set.tasks or config.evaluation
        settings = tasks.model_dump(mode="json")
        if evaluation_set.uris:
            settings |= {"pictures": self._identities_of(evaluation_set.uris), "only": evaluation_set.only}
        if evaluation_set.names_from:
            settings["names_from"] = self._identities_of(evaluation_set.names_from)
        return Step(
            name=evaluation_step_name(name),
            title=f"Evaluate on {name}",
            settings=settings,
            reads=("train",) if evaluation_set.uris else ("train", "shard-evaluation"),
            work=lambda context: _evaluate(context, evaluation_set, tasks),
        )

    def _identities_of(self, uris: Sequence[str]) -> list[str]:
        for uri in uris:
            if uri not in self._identities:
                self._identities[uri] = _identities(uri)
        return [part for uri in uris for part in self._identities[uri]]


def _identities(uri: str) -> list[str]:
    """What tells one version of local pictures from another: their content, or where it is in folders of other kinds, what the
    store says of them; remote ones are known by their address."""
    if not storage.is_local(uri):
        return [uri]
    files = [uri] if uri.endswith(".parquet") else storage.list_files(uri, suffix=".parquet")
    return [storage.fingerprint(file) for file in files] or [f"{uri} {storage.version_tag(uri)}"]


def _train_step(config: RunConfig, after: PlannedStep | None, teacher: PlannedStep | None) -> Step:
    """The models of other arms that it reads are known by the address of their training: they need not be there yet."""
    scratch = config.rebuilt(training=config.training.rebuilt(init_from=None, distillation=None))
    (train,) = (step for step in model_steps(scratch) if step.name == "train")
    settings = training_identity(
        config.training, init_from=after.hash if after else None, teacher=teacher.hash if teacher else None
    )
    return replace(train, settings=settings, params=flattened(config.training))


def _evaluate(context: StepContext, evaluation_set: EvaluationSetConfig, tasks: EvaluationConfig) -> StepResult:
    with storage.localized(bundle_uri(context.inputs["train"])) as folder:
        bundle = load_bundle(folder)
    uris = evaluation_set.uris or (context.inputs["shard-evaluation"],)
    pictures = open_evaluation_set(
        uris, readings=tasks.readings, only=evaluation_set.only, names_from=evaluation_set.names_from
    )
    result = evaluate_zero_shot([bundle], pictures, tasks, progress=lambda done, total: context.progress(done, total, "tasks"))
    write_result(result, context.output_uri)
    log_result(result, context.tracker, context.run_id)
    chosen = readings_of(context.config.training.model)
    found = SetAccuracies(
        bundle_digest=bundle.digest,
        tasks_identity=tasks_identity(pictures, tasks),
        kinds={
            one.family.slug: TaskAccuracies(
                title=one.family.title,
                chance=one.chance,
                readings={reading: values for reading, (values,) in one.unit_accuracies.items() if reading in chosen},
            )
            for one in result.families
        },
    )
    storage.write_atomic(storage.join(context.output_uri, ACCURACIES_NAME), found.model_dump_json(indent=1))
    return StepResult(summary=_summary(found), facts={"bundle_digest": bundle.digest}, metrics=metrics_of(found))


def tasks_identity(pictures: EvaluationSet, tasks: EvaluationConfig) -> str:
    """What two models have to share for their accuracies to be paired."""
    return content_hash({"pictures": pictures.identity, "tasks": tasks.model_dump(mode="json")})


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
