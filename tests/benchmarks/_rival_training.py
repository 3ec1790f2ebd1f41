"""Rivals whose image tower is not the product's, trained on the very batches of runs of the sweep and judged on its tasks.

Order, loader, variation of the pictures, schedule and grouping of the parameters are training's own; so is the loss, said for
any way to compare pictures with texts.  One process, fp32, as the sweep has it.
Shapes: B pictures, S side of a picture, T texts, C names of a task, M pictures of the evaluation set, D embedding.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra import artefacts, storage
from infra.config import StrictModel, content_hash
from infra.errors import HyperClipError
from pipeline.comparison import Comparison, compare
from pipeline.sweep import Contender
from pipeline.sweep_runner import accuracies_of
from pipeline.sweep_runs import SweepRun, entry_of
from pipeline.sweep_steps import SetAccuracies, TaskAccuracies, tasks_identity
from tests.benchmarks._gain import accuracy, difference, in_points
from tests.benchmarks._sweep_of_results import Results
from tests.benchmarks.specialization_ceiling import Progress
from tests.result import measure, seconds
from training.bundle import Bundle
from training.config import TrainConfig
from training.data import TrainingBatches, normalized
from training.engine import parameter_groups
from training.evaluation.evaluation_set import EvaluationSet, decoded
from training.evaluation.open_set import open_evaluation_set
from training.evaluation.zero_shot import EvaluationConfig, draw_families
from training.loop import step_seed
from training.loss import PairIds, positive_pairs
from training.model.hyperclip import HyperClip
from training.objective import LocalBatch
from training.schedule import rate_of_step
from training.shard_reader import open_shards
from training.specialize import encode_labels
from training.tokenizer import cut_to_longest, length_buckets

SET = "unseen-artist"
PICTURES_AT_ONCE = 256
FOLDER = "rivals"
"""In the workspace of the sweep."""


class Rival(nn.Module):
    """Pictures compared with texts; as it stands, by one feature of each picture."""

    def __init__(self, model: HyperClip) -> None:
        """Args: model: its text encoder, scale and bias, and the image encoder that it is built on."""
        super().__init__()
        self.model = model

    def see(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, S, S) -> all that is needed of each picture whatever the texts, B rows each; here (B, D) unit vectors."""
        return (self.model.encode_image(images),)

    def cosines(self, seen: tuple[Tensor, ...], texts: Tensor) -> Tensor:
        """What `see` returned, (T, D) unit vectors -> (B, T)."""
        (features,) = seen
        return features @ texts.T


def contrastive_loss(rival: Rival, batch: LocalBatch) -> Tensor:
    """() SigLIP's loss over all pairs of the batch, as `training.loss.siglip_loss`: equal captions belong together."""
    captions, number = torch.unique(cut_to_longest(batch.caption_tokens), dim=0, return_inverse=True)
    buckets = length_buckets(captions)
    texts = torch.cat([rival.model.encode_text(cut_to_longest(captions[rows])) for rows in buckets])
    texts = texts[torch.argsort(torch.cat(buckets))]  # (T, D)
    cosines = rival.cosines(rival.see(batch.images), texts)[:, number]  # (B, B)
    logits = rival.model.logit_scale * cosines + rival.model.logit_bias
    ids = PairIds(number, batch.concept_ids, None)
    return -F.logsigmoid(torch.where(positive_pairs(ids, ids), logits, -logits)).sum() / len(logits)


@dataclass(frozen=True)
class Training:
    losses: list[float]
    step_seconds: list[float]
    """Without the wait for the loader."""


def train_rival(rival: Rival, config: TrainConfig, shards_uri: str, *, title: str) -> Training:
    """Train everything of a rival as the run of a sweep would train its model.

    Args:
        config: of the run; what it says of the model and of conditioning has no meaning here.

    Raises:
        HyperClipError: the loss is not finite.
    """
    torch.set_num_threads(config.workers.threads)
    reader = open_shards(shards_uri, cache_bytes=int(config.loader_cache_gb * 1e9))
    batches = TrainingBatches(reader, config, rank=0, world_size=1).starting_at(0)
    settings = config.optimizer
    rival.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(parameter_groups(rival, settings), betas=settings.betas, eps=settings.eps, fused=True)
    progress = Progress(title, config.num_steps)
    found = Training([], [])

    def step(number: int, batch: LocalBatch) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate_of_step(number, config)
        torch.manual_seed(step_seed(config.seed, step=number, rank=0))
        loss = contrastive_loss(rival, batch)
        if not loss.isfinite():
            raise HyperClipError(f"{title}: the loss is {loss.item()} at step {number}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rival.parameters(), settings.max_grad_norm)
        optimizer.step()
        found.losses.append(loss.item())

    for number in range(config.num_steps):
        batch = next(batches)
        found.step_seconds.append(seconds(lambda number=number, batch=batch: step(number, batch)))
        progress(number + 1, {"all": found.losses[-1]})
    return found


@torch.no_grad()
def rival_accuracies(
    rival: Rival, tools: Bundle, pictures: EvaluationSet, tasks: EvaluationConfig, *, reading: str
) -> dict[str, TaskAccuracies]:
    """Share of right answers on each task, by kind; tasks and templates are those of `evaluate_zero_shot`.

    Args:
        tools: whose tokenizer, preprocessing and templates the rival was trained with.
        reading: what to call it.
    """
    rival.eval()
    images = normalized(torch.from_numpy(decoded(pictures, tools.preprocess)), tools.preprocess)
    parts = [rival.see(part) for part in images.split(PICTURES_AT_ONCE)]
    seen = tuple(torch.cat(rows) for rows in zip(*parts, strict=True))  # M rows each
    names = encode_labels(replace(tools, model=rival.model), pictures.objects.names, pictures.templates or tools.templates)
    found = {}
    for drawn in draw_families(pictures, tasks)[0]:
        right = []
        for task in drawn.tasks:
            of_task = tuple(rows[list(task.pictures)] for rows in seen)
            places = rival.cosines(of_task, names[list(task.classes)]).argmax(dim=1).numpy()
            right.append(float((places == np.array(task.targets)).mean()))
        family = drawn.family
        found[family.slug] = TaskAccuracies(title=family.title, chance=1 / family.num_names, readings={reading: tuple(right)})
    return found


class JudgedRival(StrictModel):
    """`rivals/{name}-{hash}.json`: so that what was trained once is not trained again."""

    accuracies: SetAccuracies
    last_loss: float
    step_seconds: float
    """Median, without the wait for the loader."""


@dataclass(frozen=True)
class Course:
    """What the rivals of one seed are trained and judged on."""

    stages: Sequence[TrainConfig]
    """One after the other, each with an optimizer of its own, as runs that start from one another have it."""
    shards_uri: str
    folder_uri: str
    tools: Bundle
    pictures: EvaluationSet
    tasks: EvaluationConfig

    @staticmethod
    def of(results: Results, runs: Sequence[SweepRun], tools: Bundle) -> "Course":
        """That of runs of one seed."""
        found = results.sweep.config.evaluate[SET]
        tasks = found.tasks or results.sweep.common.evaluation
        pictures = open_evaluation_set(found.uris, readings=tasks.readings, only=found.only, names_from=found.names_from)
        folder = storage.join(results.sweep.common.workspace_uri, FOLDER)
        shards_uri = entry_of(runs[0].planned, "shard-train").output_uri
        return Course([run.config.training for run in runs], shards_uri, folder, tools, pictures, tasks)


def judged(name: str, reading: str, make: Callable[[], Rival], course: Course, *, start: Mapping[str, Any]) -> JudgedRival:
    """Train and judge a rival, or tell what was found when that was done before.

    Args:
        make: makes the untrained rival; called under the seed of the course.
        start: what the untrained rival is known by: its sizes, the model that it starts from.
    """
    seed = course.stages[0].seed
    shards = [shard.sha256 for shard in open_shards(course.shards_uri).manifest.shards]
    tasks = tasks_identity(course.pictures, course.tasks)
    stages = [stage.identity(init_from="given by start") for stage in course.stages]
    identity = content_hash({"start": dict(start), "stages": stages, "shards": shards, "tasks": tasks, "reading": reading})
    uri = storage.join(course.folder_uri, f"{name}-seed-{seed}-{identity[:12]}.json")
    if storage.exists(uri):
        return artefacts.read_model(uri, JudgedRival)
    torch.manual_seed(seed)
    rival = make()
    trained = [
        train_rival(rival, stage, course.shards_uri, title=f"{name}, seed {seed}, stage {number} of {len(stages)}")
        for number, stage in enumerate(course.stages, start=1)
    ]
    kinds = rival_accuracies(rival, course.tools, course.pictures, course.tasks, reading=reading)
    found = JudgedRival(
        accuracies=SetAccuracies(bundle_digest=identity, tasks_identity=tasks, kinds=kinds),
        last_loss=trained[-1].losses[-1],
        step_seconds=statistics.median(one for stage in trained for one in stage.step_seconds),
    )
    storage.write_atomic(uri, found.model_dump_json(indent=1))
    return found


def compared_with_rivals(
    results: Results, rivals: Mapping[str, Sequence[JudgedRival]], pairs: Sequence[tuple[Contender, Contender]]
) -> Comparison:
    """The arms of the sweep and the rivals, seed after seed, on the tasks of the unseen artist.

    Raises:
        BadInputError: a rival was judged on other tasks than the arms.
    """
    found = {
        arm: {run.seed: {SET: accuracies_of(results.sweep, run)[SET]} for run in results.runs(arm)}
        for arm in results.sweep.config.arms
    }
    for name, of_seeds in rivals.items():
        seeds = results.sweep.config.seeds
        found[name] = {seed: {SET: one.accuracies} for seed, one in zip(seeds, of_seeds, strict=True)}
    return compare("rivals", found, pairs=pairs, generated={})


def rival_measures(comparison: Comparison, pairs: Sequence[tuple[Contender, Contender]]) -> dict[str, dict[str, Any]]:
    """Accuracy of all that is in a pair, and the difference of each pair with its interval, on every kind of tasks."""
    contenders = list(dict.fromkeys(str(one) for pair in pairs for one in pair))
    found: dict[str, dict[str, Any]] = {}
    for tasks in comparison.tasks:
        for contender in contenders:
            found[f"{tasks.kind}.{contender}"] = measure(100 * (accuracy(tasks, contender) or 0.0), unit="%")
        for one, other in pairs:
            found[f"{tasks.kind}.{one}_minus_{other}"] = in_points(difference(tasks, str(one), str(other)))
    return found


def ratio_of(comparison: Comparison, one: Contender, other: Contender) -> float:
    """Accuracy of one over that of the other, the mean over the kinds of tasks."""
    pairs = [(accuracy(tasks, str(one)), accuracy(tasks, str(other))) for tasks in comparison.tasks]
    return statistics.fmean(ours / theirs for ours, theirs in pairs if ours is not None and theirs)
