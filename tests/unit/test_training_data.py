"""The loader: the same batches at any topology, damage named, pictures that do not decode replaced and counted."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.manifest import VERIFIED_NAME, read_manifest
from infra import storage
from infra.errors import BadInputError, CorruptArtefactError, DataLossError
from tests.unit.data_helpers import picture
from tests.unit.shard_helpers import Sample, sample, write_shards
from training.augment import augmented, brightened
from training.config import AugmentConfig, TrainConfig
from training.data import BATCHES_AHEAD, TrainingBatches, normalized
from training.objective import LocalBatch
from training.preprocess import PreprocessConfig, normalize
from training.shard_reader import ShardReader, open_shards

NUM_SAMPLES = 96  # eight batches an epoch
BATCH = 12


def samples(*, undecodable: tuple[int, ...] = ()) -> Iterator[Sample]:
    for number in range(NUM_SAMPLES):
        data = picture(number % 7, image_format="JPEG")
        if number in undecodable:  # stored as it is, but its data ends in the middle
            data = data[: len(data) * 2 // 3]
        source = "rare" if number % 9 == 0 else "common"
        yield sample(data, number, concept=f"c{number % 20}", source=source, width=48, height=48)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shards"
    write_shards(folder, samples(), samples_per_shard=40)
    return folder


def config(**changes: object) -> TrainConfig:
    fields = {"model": "hyperclip_test", "num_steps": 1, "contrastive_batch_size": BATCH, "loader_workers": 0, **changes}
    return TrainConfig.model_validate(fields)


def batches(
    folder: Path, settings: TrainConfig, *, first: int = 0, count: int, rank: int = 0, world_size: int = 1
) -> list[LocalBatch]:
    loader = TrainingBatches(open_shards(str(folder)), settings, rank=rank, world_size=world_size)
    return list(islice(loader.starting_at(first), count))


def assert_same(left: LocalBatch, right: LocalBatch) -> None:
    for name, value in vars(left).items():
        assert torch.equal(value, getattr(right, name)), name


def test_a_batch_is_the_same_at_any_number_of_ranks_and_workers_and_from_any_start(shards: Path) -> None:
    whole = batches(shards, config(), count=10)
    for rank in range(3):
        parts = batches(shards, config(loader_workers=rank), first=7, count=3, rank=rank, world_size=3)
        for expected, part in zip(whole[7:], parts, strict=True):
            own = slice(rank * BATCH // 3, (rank + 1) * BATCH // 3)
            assert_same(part, LocalBatch(**{name: value[own] for name, value in vars(expected).items()}))
    seen = torch.cat([batch.sample_index for batch in whole])
    assert sorted(seen[:NUM_SAMPLES].tolist()) == list(range(NUM_SAMPLES))
    assert not any(batch.replaced.any() for batch in whole)


def test_batches_are_whole_when_their_memory_is_used_again_and_again(shards: Path) -> None:
    """Workers write ahead into slots that training has read: no batch may change while it is taken, or afterwards."""
    num_batches = 4 * (2 * BATCHES_AHEAD + 1)  # each slot holds four of them
    for expected, found in zip(
        batches(shards, config(), count=num_batches), batches(shards, config(loader_workers=2), count=num_batches), strict=True
    ):
        assert_same(found, expected)


def test_a_loader_leaves_the_random_numbers_of_training_alone(shards: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(shards, config(), count=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_that_do_not_decode_are_replaced_the_same_way_at_any_topology(tmp_path: Path) -> None:
    write_shards(tmp_path, samples(undecodable=(3, 50)), samples_per_shard=40)
    settings = config(max_replaced_share=0.01)
    whole = batches(tmp_path, settings, count=NUM_SAMPLES // BATCH + 1)
    assert sum(int(batch.replaced.sum()) for batch in whole) >= 2
    assert not {3, 50} & {index for batch in whole for index in batch.sample_index.tolist()}
    for rank in range(2):
        parts = batches(tmp_path, settings, count=len(whole), rank=rank, world_size=2)
        for expected, part in zip(whole, parts, strict=True):
            own = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
            assert_same(part, LocalBatch(**{name: value[own] for name, value in vars(expected).items()}))


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_replaced_pictures_fail_the_run(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path, samples(undecodable=tuple(range(0, NUM_SAMPLES, 9))), samples_per_shard=40)
    with pytest.raises(DataLossError, match=r"did not decode .* max_replaced_share=0.005 allows"):
        batches(tmp_path, config(max_replaced_share=0.005, loader_workers=workers), count=20)


def test_when_nothing_decodes_the_run_fails_at_once(tmp_path: Path) -> None:
    write_shards(tmp_path, samples(undecodable=tuple(range(NUM_SAMPLES))), samples_per_shard=40)
    with pytest.raises(CorruptArtefactError, match="do not decode"):
        batches(tmp_path, config(max_replaced_share=1), count=1)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "00001.tar").unlink(), r"00001\.tar: missing"),
        (lambda folder: os.truncate(folder / "00001.tar", 20_000), r"00001\.tar: 20,000 bytes, expected"),
        (lambda folder: swap(folder / "00000.tar", folder / "00001.tar"), r"00000\.tar: contents changed.*00001\.tar"),
    ],
    ids=["missing", "truncated", "swapped"],
)
def test_a_damaged_shard_is_named_at_the_start(
    shards: Path, tmp_path: Path, damage: Callable[[Path], object], named: str
) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")  # the marker comes with it, and must not be believed
    damage(folder)
    with pytest.raises(CorruptArtefactError, match=named):
        open_shards(str(folder))


def swap(one: Path, other: Path) -> None:
    data = one.read_bytes()
    shutil.copy(other, one)
    other.write_bytes(data)


def test_shards_are_hashed_once_and_again_when_they_were_written_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    (folder / VERIFIED_NAME).unlink()
    hashed: list[str] = []
    real = storage.sha256

    def counted(uri: str) -> str:
        hashed.append(uri)
        return real(uri)

    monkeypatch.setattr(storage, "sha256", counted)
    for _ in range(2):
        open_shards(str(folder))
    assert len(hashed) == 3
    (folder / "00001.tar").write_bytes((folder / "00001.tar").read_bytes())
    open_shards(str(folder))
    assert len(hashed) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_that_the_start_cannot_see_is_named_when_the_sample_is_read(shards: Path, tmp_path: Path, workers: int) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    loader = TrainingBatches(open_shards(str(folder)), config(loader_workers=workers), rank=0, world_size=1)
    shard = read_manifest(str(folder)).shards[1]
    with (folder / shard.path).open("r+b") as file:
        file.seek(shard.offsets[5] + 600)  # within the picture behind its header
        file.write(b"damage")
    with pytest.raises(CorruptArtefactError, match=r"sample 5 of shard 00001\.tar .* is not the one that was stored"):
        list(islice(loader.starting_at(0), NUM_SAMPLES // BATCH + 1))


def test_sources_come_in_their_shares(shards: Path) -> None:
    settings = config(source_weights={"rare": 1, "common": 1})
    seen = torch.cat([batch.sample_index for batch in batches(shards, settings, count=50)])
    assert (seen % 9 == 0).float().mean() == pytest.approx(0.5, abs=0.1)  # 600 of a round of 4,096: 4 standard errors
    only = torch.cat([batch.sample_index for batch in batches(shards, config(source_weights={"rare": 2.5}), count=3)])
    assert (only % 9 == 0).all()


def test_an_unknown_source_is_refused_with_those_there_are(shards: Path) -> None:
    with pytest.raises(BadInputError, match=r"'rara'.*'common', 'rare'"):
        batches(shards, config(source_weights={"rara": 1}), count=1)


def test_a_manifest_without_sources_says_how_to_get_them(shards: Path, tmp_path: Path) -> None:
    manifest = read_manifest(str(shards))
    bare = manifest.rebuilt(sources=[], shards=[shard.rebuilt(source_ids=None) for shard in manifest.shards])
    with pytest.raises(BadInputError, match="run the shard step again"):
        TrainingBatches(ShardReader(str(shards), bare), config(source_weights={"rare": 1}), rank=0, world_size=1)


def test_pictures_are_normalized_as_everywhere_else() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    settings = PreprocessConfig(image_size=5, mean=(0.48, 0.45, 0.4), std=(0.27, 0.26, 0.28))
    expected = np.stack([normalize(one, settings) for one in pixels])
    assert np.array_equal(normalized(torch.from_numpy(pixels), settings).numpy(), expected)


def test_colours_are_multiplied_and_cut_at_black_and_white() -> None:
    """Also by the gains at the ends of what can be drawn: the arithmetic of 16 bits must not wrap around."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for gain in ((-0.5, 0.0, 2.5), (1.0, 0.7, 1.45)):
        expected = np.clip(pixels * np.array(gain), 0, 255)
        # the gain is rounded to 1 / 64, which moves 255 by 2, and the result is cut to a whole number
        assert np.abs(brightened(pixels, np.array(gain)) - expected).max() <= 3
    assert np.array_equal(brightened(pixels, np.ones(3)), pixels)


@pytest.mark.parametrize("size", [(48, 48), (500, 375), (300, 1200)])
def test_a_crop_from_a_scaled_decode_is_the_crop_from_the_whole_picture(size: tuple[int, int]) -> None:
    blobs = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC)
    jpeg, png = io.BytesIO(), io.BytesIO()
    image.save(jpeg, "JPEG", quality=95, subsampling=0)
    image.save(png, "PNG")  # decoded whole
    left, right = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    for data, out in ((jpeg, left), (png, right)):
        augmented(data.getvalue(), AugmentConfig(), out=out, rng=np.random.default_rng(2))
    assert np.abs(left.astype(int) - right).mean() < 3  # of 255: JPEG's loss and another filter, not another crop
