"""The bundled sample: what is in it, and what its server and its list of bad links promise."""

import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep.fetch.opener import HardenedOpener, installed
from data_prep.fetch.policy import FetchError, FetchPolicy
from data_prep.sample.build import EVALUATION_ARTISTS, TRAINING_ARTISTS, build_sample
from data_prep.sample.links import BAD_LINKS, write_url_list
from data_prep.sample.pictures import SAMPLE_URI, read_sample
from data_prep.sample.serve import serving_sample
from data_prep.url_list import UrlListConfig, read_rows
from infra import images
from infra.errors import BadInputError
from tests.unit.data_helpers import picture, write_parquet

NOTICE = Path(__file__).parents[2] / "NOTICE"


def test_every_concept_is_drawn_by_every_artist_and_one_artist_is_held_out() -> None:
    rows = read_sample().drop_columns(["image"]).to_pylist()
    concepts = {row["concept"] for row in rows}
    assert len(concepts) >= 300
    artists = {split: {row["source"] for row in rows if row["split"] == split} for split in ("train", "evaluation")}
    assert (len(artists["train"]), len(artists["evaluation"])) == (4, 1)
    assert not artists["train"] & artists["evaluation"]
    assert Counter(row["concept"] for row in rows) == dict.fromkeys(concepts, 5)
    assert len({row["caption"] for row in rows}) == len(concepts)


def test_it_is_small_and_openly_licensed_and_the_notice_names_every_source() -> None:
    assert Path(SAMPLE_URI).stat().st_size <= 5_000_000
    notice = NOTICE.read_text()
    for source, licence, attribution in {
        (row["source"], row["licence"], row["attribution"]) for row in read_sample().drop_columns(["image"]).to_pylist()
    }:
        assert licence in ("Apache-2.0", "CC-BY-4.0", "MIT")
        assert attribution
        assert f"source `{source}`" in notice


def test_every_picture_decodes_at_its_size() -> None:
    for image in read_sample()["image"].to_pylist():
        assert images.decode(image).shape[:2] == (64, 64)


def test_the_server_gives_each_link_what_the_list_promises(tmp_path: Path) -> None:
    pictures = {row["uid"]: row["image"] for row in read_sample("train").to_pylist()}
    with serving_sample() as base:
        total = write_url_list(str(tmp_path / "urls.parquet"), split="train", base_url=base)
        listed = [row for rows in read_rows(str(tmp_path / "urls.parquet"), UrlListConfig()) for row in rows.to_pylist()]
        assert total == len(listed) == len(pictures) + len(BAD_LINKS)
        urls = {row["uid"]: row["url"] for row in listed}
        with installed(HardenedOpener(FetchPolicy(allowed_private_hosts=(base.removeprefix("http://"),)))):
            first = next(iter(pictures))
            with urllib.request.urlopen(urls[first]) as response:
                assert (response.read(), response.headers["Content-Type"]) == (pictures[first], "image/webp")
            for link in BAD_LINKS:
                if link.outcome in ("duplicate", "sha256_mismatch"):
                    assert urllib.request.urlopen(urls[f"bad-{link.name}"]).read() in pictures.values()
                    continue
                with pytest.raises(FetchError) as caught:
                    urllib.request.urlopen(urls[f"bad-{link.name}"])
                assert caught.value.reason == link.outcome


def test_the_evaluation_list_has_no_bad_links(tmp_path: Path) -> None:
    count = write_url_list(str(tmp_path / "urls.parquet"), split="evaluation", base_url="http://127.0.0.1:1")
    assert count == read_sample("evaluation").num_rows


def test_a_taken_port_is_said_so() -> None:
    with (
        serving_sample() as base,
        pytest.raises(BadInputError, match="something else listens there; choose another port"),
        serving_sample(int(base.rpartition(":")[2])),
    ):
        pass


def test_the_choice_is_deterministic_and_leaves_out_what_is_too_alike(tmp_path: Path) -> None:
    def rows(sources: list[str]) -> list[dict[str, Any]]:
        captions = [f"animal {i}" for i in range(30)] + ["cat face", "cat: dark skin tone"]
        return [
            {
                "uid": f"{source}/{place}",
                "source": source,
                "image": picture(place),
                "caption": caption,
                "concept": f"emoji:{place:X}",
                "group": "Animals & Nature/animal-mammal",
            }
            for source in sources
            for place, caption in enumerate(captions)
        ]

    write_parquet(tmp_path / "train-00.parquet", rows(list(TRAINING_ARTISTS)))
    write_parquet(tmp_path / "eval-family.parquet", rows(list(EVALUATION_ARTISTS)))
    sample = build_sample(str(tmp_path))
    assert sample.equals(build_sample(str(tmp_path)))
    assert sample.num_rows == 30 * 5
    assert not {"cat face", "cat: dark skin tone"} & set(sample["caption"].to_pylist())
    with pytest.raises(BadInputError, match="0 concepts drawn by all of"):
        build_sample(write_parquet(tmp_path / "alone" / "train-00.parquet", rows(["emoji-twemoji"])))
