"""Zero-shot evaluation: how tasks are drawn, and the accuracy of a model whose answers are known beforehand."""

from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from infra.errors import BadInputError
from tests.unit.model_helpers import make_bundle, random_images
from tests.unit.shard_helpers import sample, write_shards
from training.bundle import Bundle
from training.evaluation.tasks import LabelSetTask, draw_tasks
from training.evaluation.zero_shot import (
    READINGS,
    EvaluationConfig,
    ZeroShotResult,
    _interval,
    evaluate_zero_shot,
    load_pictures,
    task_scores,
)
from training.model.parameter_delta import GroupDelta
from training.preprocess import PreprocessConfig
from training.shard_reader import ShardReader, open_shards
from training.tokenizer import Tokenizer

NAMES = [f"thing {number}" for number in range(20)]
GREY_STEP = 12
"""Between the greys of two concepts; 20 of them fit into 0 to 255."""


# ---- drawing ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    concepts=st.lists(st.integers(0, 14), min_size=1, max_size=60).map(lambda found: [*range(15), *found]),
    num_ways=st.integers(1, 15),
    num_tasks=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_a_task_has_distinct_concepts_and_all_their_pictures(
    concepts: list[int], num_ways: int, num_tasks: int, seed: int
) -> None:
    tasks = draw_tasks(concepts, num_ways=num_ways, num_tasks=num_tasks, seed=seed)
    assert len(tasks) == num_tasks
    for task in tasks:
        assert len(set(task.concepts)) == num_ways
        assert sorted(task.pictures) == [number for number, concept in enumerate(concepts) if concept in task.concepts]
        assert [task.concepts[target] for target in task.targets] == [concepts[picture] for picture in task.pictures]
    assert tasks == draw_tasks(concepts, num_ways=num_ways, num_tasks=num_tasks, seed=seed)


def test_concepts_are_dealt_like_cards() -> None:
    tasks = draw_tasks(range(30), num_ways=10, num_tasks=12, seed=0)  # four whole decks
    assert set(Counter(concept for task in tasks for concept in task.concepts).values()) == {4}


def test_another_seed_and_another_size_draw_other_tasks() -> None:
    first = draw_tasks(range(30), num_ways=10, num_tasks=3, seed=0)
    assert first != draw_tasks(range(30), num_ways=10, num_tasks=3, seed=1)
    assert first == draw_tasks(range(30), num_ways=10, num_tasks=9, seed=0)[:3]


@pytest.mark.parametrize("concepts", [[], [0, 1, 2, 2, 2]])
def test_too_few_concepts_are_refused(concepts: list[int]) -> None:
    with pytest.raises(BadInputError, match="5-way tasks need 5"):
        draw_tasks(concepts, num_ways=5, num_tasks=1, seed=0)


# ---- a model whose answers are known ---------------------------------------------------------------------------------


class KnowingModel:
    """Sees which grey a picture is, and answers right where its parameters let it.

    Conditioned on names, it knows the concepts of these names and no other; with the neutral parameters it knows the even ones.
    """

    logit_scale = torch.tensor(10.0)
    log_scale = torch.tensor(0.0)

    def __init__(self) -> None:
        self._number_of = {tuple(Tokenizer()([name])[0].tolist()): number for number, name in enumerate(NAMES)}

    def encode_text(self, tokens: Tensor) -> Tensor:
        unpadded = [tuple(token for token in row if token) for row in tokens.tolist()]
        return one_hot(torch.tensor([self._number_of[row] for row in unpadded]), len(NAMES)).float()

    def generate(self, text_features: Tensor) -> Tensor:
        return text_features.sum(dim=1)  # (G, C, D) -> (G, D): which names there are

    def encode_image(self, images: Tensor, delta: GroupDelta | None = None) -> Tensor:
        numbers = ((images.mean(dim=(1, 2, 3)) / 2 + 0.5) * 255 / GREY_STEP).round().long()
        known = numbers % 2 == 0 if delta is None else delta.flat[0][numbers] > 0
        return one_hot(numbers, len(NAMES)) * torch.where(known, 1.0, -1.0)[:, None]  # the wrong side of zero: never right


def grey(number: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (number * GREY_STEP,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def knowing() -> Bundle:
    return Bundle(
        model=cast(Any, KnowingModel()),
        tokenizer=Tokenizer(),
        preprocess=PreprocessConfig(image_size=8),
        templates=("{}",),
        metrics={},
        digest="d" * 64,
    )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Concept n has n % 3 + 1 pictures."""
    numbers = [number for number in range(len(NAMES)) for _ in range(number % 3 + 1)]
    folder = tmp_path_factory.mktemp("shards")
    found = [sample(grey(number), place, caption=NAMES[number], concept=f"c{number}") for place, number in enumerate(numbers)]
    write_shards(folder, found, samples_per_shard=15, suffix="png")
    return open_shards(str(folder))


def evaluated(bundle: Bundle, reader: ShardReader, **settings: Any) -> ZeroShotResult:
    config = EvaluationConfig(**{"ways": (5, 10), "num_tasks": 4, "num_shown": 6, **settings})
    return evaluate_zero_shot(bundle, reader, config, progress=lambda done, total: None)


def test_the_readings_of_a_model_whose_answers_are_known(knowing: Bundle, reader: ShardReader) -> None:
    result = evaluated(knowing, reader)
    concepts = load_pictures(reader, knowing).concept_of_picture
    for way in result.ways:
        tasks = draw_tasks(concepts, num_ways=way.num_ways, num_tasks=4, seed=0)
        assert way.accuracy["specialized"].mean == way.accuracy["specialized"].low == 1
        assert way.accuracy["neutral"].mean == pytest.approx(np.mean([right(task, range(0, 20, 2)) for task in tasks]))
        swapped = [right(task, tasks[number - 1].concepts) for number, task in enumerate(tasks)]
        assert way.accuracy["swapped"].mean == pytest.approx(np.mean(swapped))
        assert np.mean(swapped) < 0.7
        assert way.num_predictions == sum(len(task.pictures) for task in tasks)
        assert way.num_pictures == len({picture for task in tasks for picture in task.pictures})
        assert way.chance == 1 / way.num_ways
    assert (result.num_pictures, result.num_concepts) == (39, 20)
    assert [shown.predicted for shown in result.shown] == [shown.truth for shown in result.shown]
    assert len(result.shown) == 6


def right(task: LabelSetTask, known: Any) -> float:
    """Share of the task's pictures whose concept is known."""
    return float(np.mean([task.concepts[target] in known for target in task.targets]))


def test_progress_counts_the_tasks(knowing: Bundle, reader: ShardReader) -> None:
    calls: list[tuple[int, int]] = []
    config = EvaluationConfig(ways=(2, 3), num_tasks=3)
    evaluate_zero_shot(knowing, reader, config, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(1, 7)]


def test_two_evaluations_are_comparable_only_on_the_same_tasks(knowing: Bundle, reader: ShardReader, tmp_path: Path) -> None:
    first = evaluated(knowing, reader).headline_tasks
    assert evaluated(knowing, reader, ways=(5, 7), num_shown=0).headline_tasks == first  # what decides nothing
    others = [
        evaluated(knowing, reader, **changed).headline_tasks for changed in ({"seed": 1}, {"num_tasks": 5}, {"ways": (4, 10)})
    ]
    found = [sample(grey(number), number, caption=NAMES[number], concept=f"c{number}") for number in range(20)]
    write_shards(tmp_path, found, samples_per_shard=20, suffix="png")
    others.append(evaluated(knowing, open_shards(str(tmp_path))).headline_tasks)
    assert len({first, *others}) == 5


def test_pictures_without_a_concept_are_concepts_of_their_own(knowing: Bundle, tmp_path: Path) -> None:
    found = [
        sample(grey(0), 0, caption=NAMES[0], concept="a"),
        sample(grey(1), 1, caption=NAMES[1], concept="a"),
        sample(grey(2), 2, caption=NAMES[2]),
        sample(grey(2), 3, caption=NAMES[2]),
    ]
    write_shards(tmp_path, found, samples_per_shard=4, suffix="png")
    pictures = load_pictures(open_shards(str(tmp_path)), knowing)
    assert pictures.concept_of_picture == [0, 0, 1, 2]
    assert pictures.names == [NAMES[0], NAMES[2], NAMES[2]]


def test_each_reading_runs_a_real_model_under_its_own_parameters(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    images, model = random_images(6), bundle.model
    names = torch.nn.functional.normalize(torch.randn(8, model.encode_image(images).shape[1], generator=seeded()), dim=1)
    task, other = LabelSetTask((0, 1, 2), (0, 2, 4), (0, 1, 2)), LabelSetTask((5, 6, 7), (1,), (0,))
    scores = task_scores(bundle, images, task, other=other, neutral=model.encode_image(images), names=names)
    for reading, concepts in (("specialized", [0, 1, 2]), ("swapped", [5, 6, 7]), ("neutral", None)):
        delta = GroupDelta(model.generate(names[concepts][None])) if concepts else None
        expected = model.encode_image(images[[0, 2, 4]], delta) @ names[:3].T
        torch.testing.assert_close(scores[reading], expected, rtol=0, atol=1e-6)  # type: ignore[index]
    for one, two in (("specialized", "swapped"), ("specialized", "neutral"), ("swapped", "neutral")):
        assert (scores[one] - scores[two]).abs().max() > 1e-3  # type: ignore[index]
    assert set(scores) == set(READINGS)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# ---- the interval ----------------------------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).binomial(20, 0.4, size=200) / 20
    found = _interval(values.tolist(), seed=0)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    # 2,000 resamples know a 2.5 % quantile to a few per cent of the width
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert found.low < found.mean < found.high
    assert found == _interval(values.tolist(), seed=0)


def test_tasks_that_agree_leave_no_doubt() -> None:
    found = _interval([0.5] * 7, seed=0)
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        EvaluationConfig(ways=(0,))
