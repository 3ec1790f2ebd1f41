"""Which evaluation pictures the classifier at the end of a run is tried on."""

import pytest

from infra.errors import BadInputError
from pipeline.config import ShowcaseConfig
from pipeline.showcase_steps import pictures_of
from tests.unit.model_helpers import picture_bytes
from tests.unit.shard_helpers import sample, write_shards
from training.shard_reader import ShardReader, open_shards

CAPTIONS = ["cat", "dog", "cat", "a red bus", "cat"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    folder = tmp_path_factory.mktemp("shards")
    samples = [sample(picture_bytes(20, 20, seed=i), i, caption=caption) for i, caption in enumerate(CAPTIONS)]
    write_shards(folder, samples, samples_per_shard=2, suffix="png")
    return open_shards(str(folder))


def test_the_first_pictures_are_taken_and_all_that_match_are_counted(reader: ShardReader) -> None:
    chosen = pictures_of(reader, ShowcaseConfig(labels=("cat", "dog", "pizza"), num_pictures=2))
    assert [(number, record.captions[0]) for number, _, record in chosen.pictures] == [(0, "cat"), (1, "dog")]
    assert chosen.matching == {"cat": 3, "dog": 1}
    assert chosen.matching["pizza"] == 0


def test_labels_of_another_set_are_refused_with_captions_that_would_do(reader: ShardReader) -> None:
    with pytest.raises(
        BadInputError, match=r"none of the 5 evaluation pictures .*pizza, castle; .*for example: cat, dog, a red bus"
    ):
        pictures_of(reader, ShowcaseConfig(labels=("pizza", "castle")))
