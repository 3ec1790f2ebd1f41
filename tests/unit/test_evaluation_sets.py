"""Evaluation sets in parquet, in CLIP_benchmark's folders and in shards: what is read, and what is said of a bad one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import BadInputError
from tests.unit.model_helpers import picture_bytes
from tests.unit.shard_helpers import TAR_END, sample, tar_member, write_shards
from training.evaluation import evaluation_set as module
from training.evaluation.evaluation_set import EvaluationSet, ReadingConfig, decoded
from training.evaluation.open_set import open_evaluation_set
from training.evaluation.webdataset_set import read_templates
from training.preprocess import PreprocessConfig, normalize, preprocess

SIDE = PreprocessConfig(image_size=16)
PICTURES = [picture_bytes(20 + number, 24, seed=number) for number in range(6)]
ROWS: dict[str, Any] = {
    "image": PICTURES,
    "caption": ["cat", "a cat", "cat", "dog", "red bus", "red bus"],
    "concept": ["c", "c", "c", "d", None, None],
    "group": ["Animals/pet", "Animals/pet", None, "Animals/pet", "?/?", None],
    "source": ["flat", "flat", "3d", "3d", "flat", "3d"],
}
EMPTY: dict[str, Any] = {**{name: pa.array([], pa.string()) for name in ROWS}, "image": pa.array([], pa.binary())}


def opened(*uris: Path, only: dict[str, str] | None = None, **readings: ReadingConfig) -> EvaluationSet:
    return open_evaluation_set([str(uri) for uri in uris], readings=readings, only=only or {})


def parquet(folder: Path, *, name: str = "pictures.parquet", without: str = "", **changed: Any) -> Path:
    path = folder / name
    table = {column: values for column, values in {**ROWS, **changed}.items() if column != without}
    pq.write_table(pa.table(table), path, row_group_size=4)
    return path


def clip_benchmark(folder: Path, *, classes: str = "cat\ndog\nred bus\n", nshards: str = "2") -> Path:
    """Six pictures in two shards."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text(classes)
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n\n{c}\n")
    (folder / "test" / "nshards.txt").write_text(nshards)
    for shard in range(2):
        members = b""
        for number in range(3 * shard, 3 * shard + 3):
            # either order of a sample's files
            files = [(f"s{number}.png", PICTURES[number]), (f"s{number}.cls", str(number // 2).encode())]
            members += b"".join(tar_member(*file) for file in (files if number % 2 else files[::-1]))
        (folder / "test" / f"{shard}.tar").write_bytes(members + TAR_END)
    return folder


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_pictures_and_names_of_parquet_files(tmp_path: Path) -> None:
    path = parquet(tmp_path)
    found = opened(path, style=ReadingConfig(column="source", names={"3d": "a rendering"}))
    assert found.objects.names == ("cat", "dog", "red bus")
    assert found.objects.class_of_picture.tolist() == [0, 0, 0, 1, 2, 2]
    assert found.objects.topic_of_class == ("Animals", "Animals", None)
    assert found.further[0].names == ("flat", "a rendering")
    assert found.captions == tuple(ROWS["caption"])
    assert [data for _, data in found.stored()] == PICTURES
    assert [data for _, data in opened(tmp_path).stored()] == PICTURES  # a folder of them
    assert len(opened(path, parquet(tmp_path, name="more.parquet"))) == 12
    chosen = opened(path, only={"source": "3d"})
    assert [data for _, data in chosen.stored()] == [PICTURES[2], PICTURES[3], PICTURES[5]]
    assert chosen.identity != found.identity


def test_only_image_and_caption_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "plain.parquet"
    as_datasets_write_it = [{"bytes": data, "path": None} for data in PICTURES]
    pq.write_table(pa.table({"image": as_datasets_write_it, "caption": pa.array(ROWS["caption"]).dictionary_encode()}), path)
    found = opened(path)
    assert found.objects.names == ("cat", "a cat", "dog", "red bus")
    assert [data for _, data in found.stored()] == PICTURES


def test_names_of_other_files_stand_beside_those_of_the_pictures(tmp_path: Path) -> None:
    path, other = parquet(tmp_path), tmp_path / "other.parquet"
    names = ["Cat", "cow", "cow", "car", "hen", "", "hen"]  # a cat is among the pictures, a car is of no topic of theirs
    topics = [*["Animals/pet"] * 3, "Traffic/road", *["Animals/bird"] * 3]
    pq.write_table(pa.table({"caption": names, "group": topics}), other)
    found = open_evaluation_set([str(path)], readings={}, only={}, names_from=[str(other)])
    assert found.objects.names == ("cat", "dog", "red bus", "cow", "hen")
    assert found.objects.topic_of_class[3:] == ("Animals", "Animals")
    assert (found.objects.num_own, found.objects.num_known) == (3, 2)
    assert len(found) == 6 and found.identity != opened(path).identity
    with pytest.raises(BadInputError, match="has no column 'caption'"):
        open_evaluation_set(
            [str(path)], readings={}, only={}, names_from=[str(parquet(tmp_path, name="x.parquet", without="caption"))]
        )


def test_a_folder_of_clip_benchmark(tmp_path: Path) -> None:
    found = opened(clip_benchmark(tmp_path / "set"))
    assert (found.name, found.objects.names) == ("set", ("cat", "dog", "red bus"))
    assert found.objects.class_of_picture.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.templates == ("a photo of a {}.", "{}")
    assert found.captions is None
    assert [data for _, data in found.stored()] == PICTURES


def test_shards(tmp_path: Path) -> None:
    samples = [
        sample(data, number, caption=caption, concept=concept, source=source)
        for number, (data, caption, concept, source) in enumerate(
            zip(PICTURES, ROWS["caption"], ROWS["concept"], ROWS["source"], strict=True)
        )
    ]
    write_shards(tmp_path, samples, samples_per_shard=4, suffix="png")
    found = opened(tmp_path, style=ReadingConfig(column="source"))
    assert found.objects.names == ("cat", "dog", "red bus")
    assert found.further[0].class_of_picture.tolist() == [0, 0, 1, 1, 0, 1]
    assert [data for _, data in found.stored()] == PICTURES
    with pytest.raises(BadInputError, match="shards have no column 'colour'"):
        opened(tmp_path, colour=ReadingConfig(column="colour"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_pictures_are_decoded_as_they_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, in_memory: bool) -> None:
    monkeypatch.setattr(module, "MAX_IN_MEMORY", 1 << 30 if in_memory else 0)
    monkeypatch.setattr(module, "DECODED_AT_ONCE", 4)
    found = decoded(opened(parquet(tmp_path)), SIDE)
    assert isinstance(found, np.memmap) is not in_memory
    for pixels, data in zip(found, PICTURES, strict=True):
        assert np.array_equal(normalize(pixels, SIDE), preprocess(data, SIDE))


# ---- what is said of a bad one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda folder: parquet(folder, without="image"), "has no column 'image'; its columns are: caption, concept"),
        (lambda folder: parquet(folder, without="caption"), "has no column 'caption'"),
        (lambda folder: parquet(folder, image=["a.png"] * 6), "column 'image' is string, expected the bytes of pictures"),
        (lambda folder: parquet(folder, caption=[["cat"]] * 6), "column 'caption' is list"),
        (lambda folder: parquet(folder, caption=["cat", None, "", "dog", "b", "b"], without="concept"), "row 1 has no caption"),
        (lambda folder: parquet(folder, caption=["cat", "cat", "cat", " ", "b", "b"]), "row 3 has concept 'd' but no caption"),
        (lambda folder: parquet(folder, **EMPTY), "no rows"),
        (lambda folder: folder / "absent.parquet", "does not exist"),
        (lambda folder: folder / "absent", "does not exist; give a .parquet file or a folder of them"),
        (lambda folder: folder, "holds nothing to evaluate on; give a .parquet file"),
    ],
)  # fmt: skip
def test_bad_parquet_is_named(tmp_path: Path, made: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(BadInputError, match=says.replace("(", r"\(")):
        opened(made(tmp_path))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(BadInputError, match="not a readable parquet file"):
        opened(tmp_path / "text.parquet")


def test_rows_and_readings_that_are_not_there(tmp_path: Path) -> None:
    path = parquet(tmp_path)
    with pytest.raises(BadInputError, match="no rows where source is 'oil'"):
        opened(path, only={"source": "oil"})
    with pytest.raises(BadInputError, match="has no column 'artist'"):
        opened(path, only={"artist": "x"})
    with pytest.raises(BadInputError, match="has no column 'colour'"):
        opened(path, colour=ReadingConfig(column="colour"))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("classnames.txt", None, "classnames.txt does not exist"),
        ("classnames.txt", b"", "classnames.txt is empty"),
        ("classnames.txt", b"cat\n\nbus\n", "line 2 is empty"),
        ("classnames.txt", b"cat\ndog\n", "sample s4 is of class 2, and classnames.txt names 2 classes, 0 to 1"),
        ("classnames.txt", b"\xff\xfe", "not text in UTF-8"),
        ("zeroshot_classification_templates.txt", b"a photo\n", "line 1: 'a photo' must hold {} or {c} once"),
        ("zeroshot_classification_templates.txt", b"\n", "holds no template"),
        ("dataset_type.txt", b"retrieval\n", "is a 'retrieval' set"),
        ("test/nshards.txt", None, "nshards.txt does not exist"),
        ("test/nshards.txt", b"two", "holds 'two', expected the number of shards"),
        ("test/nshards.txt", b"0", "expected the number of shards, at least 1"),
        ("test/nshards.txt", b"3", "says 3 shards, and 2 are there; missing: 2.tar"),
        ("test/nshards.txt", b"1", "says 1 shards, and 2 are there; not expected: 1.tar"),
        ("test/1.tar", b"no tar at all" * 100, "1.tar is not a whole tar"),
        ("test/1.tar", tar_member("a.png", PICTURES[0])[:700], "1.tar is not a whole tar"),
        ("test/1.tar", tar_member("a.png", PICTURES[0]) + TAR_END, "sample a has no .cls"),
        ("test/1.tar", tar_member("a.cls", b"1") + TAR_END, "sample a has no picture"),
        ("test/1.tar", tar_member("a.png", PICTURES[0]) + tar_member("a.cls", b"cat") + TAR_END, "its .cls holds 'cat'"),
    ],
)
def test_a_bad_folder_of_clip_benchmark_is_named(tmp_path: Path, file: str, content: bytes | None, says: str) -> None:
    folder = clip_benchmark(tmp_path / "set")
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(BadInputError) as refused:
        opened(folder)
    assert says in str(refused.value)


def test_an_empty_folder_of_clip_benchmark(tmp_path: Path) -> None:
    folder = clip_benchmark(tmp_path / "set")
    for shard in range(2):
        (folder / "test" / f"{shard}.tar").write_bytes(TAR_END)
    with pytest.raises(BadInputError, match="hold no pictures"):
        opened(folder)


def test_broken_pictures_are_named_with_their_place(tmp_path: Path) -> None:
    images = [PICTURES[0], b"<html>", PICTURES[2][:60], b"", *PICTURES[4:]]
    path = parquet(tmp_path, image=images)
    with pytest.raises(BadInputError) as refused:
        decoded(opened(path), SIDE)
    message = str(refused.value)
    assert "3 of 6 pictures of pictures cannot be read" in message
    assert all(f"pictures.parquet, row {row}: " in message for row in (1, 2, 3))
    many = parquet(tmp_path, name="many.parquet", image=[b"no"] * 6)
    with pytest.raises(BadInputError, match="and 1 more"):
        decoded(opened(many), SIDE)


def test_templates_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("a drawing of a {}\nan icon of {c}\n")
    assert read_templates(str(path)) == ("a drawing of a {}", "an icon of {}")
