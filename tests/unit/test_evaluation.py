"""Zero-shot evaluation of a model whose answers are known beforehand, and of real ones."""

from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from infra.errors import BadInputError
from tests.unit.model_helpers import make_bundle
from tests.unit.shard_helpers import sample, write_shards
from training.bundle import Bundle
from training.evaluation.encode import Job, PictureEncoder
from training.evaluation.evaluation_set import ReadingConfig
from training.evaluation.result import ZeroShotResult
from training.evaluation.shard_set import shard_set
from training.evaluation.tasks import LabelSetTask, draw_tasks
from training.evaluation.zero_shot import EvaluationConfig, evaluate_zero_shot
from training.model.parameter_delta import GroupDelta
from training.model.registry import hyperclip_test, siglip_twin
from training.preprocess import PreprocessConfig, normalize
from training.shard_reader import ShardReader, open_shards
from training.specialize import encode_labels
from training.tokenizer import Tokenizer

NAMES = [f"thing {number}" for number in range(20)]
GREY_STEP = 12
"""Between the greys of two concepts; 20 of them fit into 0 to 255."""


# ---- a model whose answers are known ---------------------------------------------------------------------------------


class KnowingModel:
    """Sees which grey a picture is, and answers right where its parameters let it.

    Conditioned on names, it knows the concepts of these names and no other; with the neutral parameters it knows the even ones.
    """

    logit_scale = torch.tensor(10.0)
    logit_bias = torch.tensor(-5.0)
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
        if delta is None:
            known = numbers % 2 == 0
        else:
            groups = torch.zeros(len(images), dtype=torch.int64) if delta.group_index is None else delta.group_index
            known = delta.flat[groups, numbers] > 0
        return one_hot(numbers, len(NAMES)) * torch.where(known, 1.0, -1.0)[:, None]  # the wrong side of zero: never right


def grey(number: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (number * GREY_STEP,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr("training.evaluation.encode.neutral_encoder", lambda model: model.encode_image)  # nothing to fold in it
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
    config = EvaluationConfig(**{"ways": (5, 10), "kinds": ("random",), "num_tasks": 4, "num_shown": 6, **settings})
    return evaluate_zero_shot([bundle], shard_set(reader), config, progress=lambda done, total: None)


def test_the_arms_of_a_model_whose_answers_are_known(knowing: Bundle, reader: ShardReader) -> None:
    result = evaluated(knowing, reader)
    pictures = shard_set(reader)
    for found in result.families:
        tasks = draw_tasks(pictures.objects, found.family, num_tasks=4, max_pictures=10, seed=0)
        specialized = found.accuracy["specialized"]
        assert specialized.mean == specialized.low == specialized.high == found.macro_recall["specialized"].mean == 1
        assert found.accuracy["neutral"].mean == pytest.approx(np.mean([right(task, range(0, 20, 2)) for task in tasks]))
        swapped = [right(task, tasks[number - 1].classes) for number, task in enumerate(tasks)]
        assert found.accuracy["swapped"].mean == pytest.approx(np.mean(swapped))
        assert np.mean(swapped) < 0.7
        over = {(one.arm, one.baseline): one.difference.mean for one in found.differences}
        assert over["specialized", "swapped"] == pytest.approx(1 - np.mean(swapped))
        assert found.num_predictions == sum(len(task.pictures) for task in tasks)
        assert found.num_pictures == len({picture for task in tasks for picture in task.pictures})
        assert found.chance == 1 / found.family.num_names
        # a picture of another name looks like none of these to parameters that know these names only
        assert found.none_of_these["specialized"].mean == 1
    assert (result.num_pictures, result.num_concepts) == (39, 20)
    assert [shown.predicted for shown in result.shown] == [shown.truth for shown in result.shown]
    assert len(result.shown) == 6


def right(task: LabelSetTask, known: Any) -> float:
    """Share of the task's pictures whose class is known."""
    return float(np.mean([task.classes[target] in known for target in task.targets]))


def test_distractors_are_known_and_shown_nowhere(knowing: Bundle, reader: ShardReader) -> None:
    plain, distracted = evaluated(knowing, reader, ways=(10,), distractor_share=0.4).families
    assert (plain.family.num_distractors, distracted.family.num_distractors) == (0, 4)
    assert distracted.num_predictions < plain.num_predictions
    assert distracted.accuracy["specialized"].mean == 1


def test_all_names_are_one_task_with_every_picture(knowing: Bundle, reader: ShardReader) -> None:
    (found,) = evaluated(knowing, reader, kinds=("all",), max_pictures=1).families
    assert (found.family.num_names, found.num_tasks, found.num_predictions, found.resampled) == (20, 1, 39, "pictures")
    assert "swapped" not in found.accuracy
    assert found.accuracy["neutral"].low < found.accuracy["neutral"].mean < found.accuracy["neutral"].high


def test_families_that_the_pictures_do_not_allow_are_told_and_the_first_one_is_refused(
    knowing: Bundle, reader: ShardReader
) -> None:
    result = evaluated(knowing, reader, ways=(5, 30), kinds=("random", "same_topic"))
    assert [one.family.slug for one in result.families] == ["5_way"]
    assert [one.family.slug for one in result.skipped] == ["30_way", "5_way_same_topic", "30_way_same_topic"]
    assert "30-way tasks need 30" in result.skipped[0].reason
    assert "no topics" in result.skipped[1].reason
    with pytest.raises(BadInputError, match="show 20 concepts; 30-way tasks need 30"):
        evaluated(knowing, reader, ways=(30, 5))


def test_progress_counts_the_tasks_of_all_models(knowing: Bundle, reader: ShardReader) -> None:
    calls: list[tuple[int, int]] = []
    config = EvaluationConfig(ways=(2, 3), kinds=("random",), num_tasks=3)
    pictures = shard_set(reader)
    evaluate_zero_shot([knowing, knowing], pictures, config, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 12) for done in range(1, 13)]


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


def test_each_model_needs_its_twin(knowing: Bundle, reader: ShardReader) -> None:
    with pytest.raises(BadInputError, match="2 models and 1 twins"):
        config = EvaluationConfig(ways=(2,))
        evaluate_zero_shot([knowing] * 2, shard_set(reader), config, twins=[knowing], progress=lambda *_: None)


# ---- a real model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("real") / "bundle")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)


def test_jobs_that_share_a_pass_give_what_each_gives_alone(real: Bundle, pixels: np.ndarray) -> None:
    encoder = PictureEncoder(real, pixels)
    names = encode_labels(real, NAMES, real.templates)
    jobs = [Job(names[:3], np.array([0, 2, 4])), Job(names[5:8], np.array([1])), Job(names[5:7], np.array([8, 0]))]
    together = list(encoder.under(jobs))
    images = torch.from_numpy(np.stack([normalize(picture, real.preprocess) for picture in pixels]))
    for job, features in zip(jobs, together, strict=True):
        delta = GroupDelta(real.model.generate(job.names[None]))
        expected = real.model.encode_image(images[job.pictures], delta)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)  # fused and split norms differ by 5e-7
        (alone,) = encoder.under([job])
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)
        assert (features - encoder.neutral[job.pictures]).abs().max() > 1e-3
    torch.testing.assert_close(encoder.neutral, real.model.encode_image(images), rtol=0, atol=1e-6)


def test_the_pixels_are_normalized_as_when_served(real: Bundle, pixels: np.ndarray) -> None:
    found = PictureEncoder(real, pixels)._normalized(pixels[3:4])[0].numpy()
    assert np.array_equal(found, normalize(pixels[3], real.preprocess))


def test_a_twin_brings_arms_of_its_own_and_equals_itself(tmp_path: Path, reader: ShardReader) -> None:
    twin = make_bundle(tmp_path / "twin", siglip_twin(hyperclip_test()))
    config = EvaluationConfig(ways=(4,), num_tasks=3, kinds=("random",))
    result = evaluate_zero_shot([twin], shard_set(reader), config, twins=[twin], progress=lambda *_: None)
    accuracy = result.headline.accuracy
    assert set(accuracy) == {"specialized", "neutral", "swapped", "twin", "twin_centred", "twin_orthogonal"}
    # without a hypernetwork nothing is specialized, whatever the names are
    assert accuracy["specialized"] == accuracy["neutral"] == accuracy["swapped"] == accuracy["twin"]
    assert result.retrieval["neutral"] == result.retrieval["twin"]
    assert all(one.difference.low == one.difference.high == 0 for one in result.headline.differences if one.baseline == "twin")
    assert ZeroShotResult.model_validate_json(result.model_dump_json()) == result


def test_pictures_are_read_in_another_way(real: Bundle, tmp_path: Path) -> None:
    """By style: the same pictures, other names; the control asks the model for what they show."""
    found = [
        sample(grey(number), number, caption=NAMES[number], concept=f"c{number}", source="red" if number % 2 else "blue")
        for number in range(20)
    ]
    write_shards(tmp_path, found, samples_per_shard=20, suffix="png")
    readings = {"style": ReadingConfig(column="source", names={"red": "a red one"})}
    pictures = shard_set(open_shards(str(tmp_path)), readings=readings)
    assert pictures.further[0].names == ("blue", "a red one")
    config = EvaluationConfig(ways=(6,), kinds=("random",), num_tasks=3, readings=readings)
    by_object, by_style = evaluate_zero_shot([real], pictures, config, progress=lambda *_: None).families
    assert (by_style.family.slug, by_style.num_predictions) == ("2_way_by_style", by_object.num_predictions)
    assert "swapped" in by_style.accuracy
    assert not by_style.none_of_these


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        EvaluationConfig(ways=(0,))
    with pytest.raises(ValueError, match="less than 1"):
        EvaluationConfig(distractor_share=1)
