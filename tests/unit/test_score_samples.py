"""`hyperclip score`: a score a sample, as the model gives it, and a command that was cut off goes on."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import data_prep.curation.curate
import data_prep.import_pictures
import pipeline.score_samples
from data_prep.curation.curate import CurateConfig, curate
from data_prep.curation.scores import ScoreConfig
from data_prep.fan_out import TaskConfig
from data_prep.import_pictures import import_pictures
from data_prep.picture_partition import ImportConfig
from data_prep.raw import read_download_report
from infra.errors import BadInputError
from pipeline.cli import app
from pipeline.score_samples import Scored, score_samples
from tests.unit.data_helpers import no_progress, picture, run_here, write_parquet
from training.bundle import load_bundle
from training.preprocess import preprocess
from training.shipped import shipped_model_folder


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(data_prep.curation.curate, "stream", run_here)
    monkeypatch.setattr(data_prep.import_pictures, "fan_out", run_here)
    monkeypatch.setattr(pipeline.score_samples, "fan_out", run_here)
    rows = [{"uid": f"{seed}", "image": picture(seed), "caption": f"<b>thing</b> {seed}"} for seed in range(5)]
    rows[3]["image"] = picture(3, width=200, height=200, image_format="PNG")[:-300]
    uri = write_parquet(tmp_path / "pictures.parquet", rows)
    import_pictures(uri, config=ImportConfig(samples_per_shard=2), output_uri=str(tmp_path / "raw"), progress=no_progress)
    return str(tmp_path / "raw")


def scored(raw: str, output: str, *, clean_captions: bool = False) -> Scored:
    return score_samples(
        raw,
        output,
        bundle_folder=shipped_model_folder(),
        clean_captions=clean_captions,
        tasks=TaskConfig(),
        progress=no_progress,
    )


def test_every_sample_has_the_cosine_of_the_neutral_features(raw: str, tmp_path: Path) -> None:
    output = str(tmp_path / "scores.parquet")
    assert scored(raw, output) == Scored(samples=5, without=1, damaged=[])
    table = pq.read_table(output)
    bundle = load_bundle(shipped_model_folder())
    image = bundle.model.encode_image(torch.from_numpy(preprocess(picture(1), bundle.preprocess))[None])
    text = bundle.model.encode_text(bundle.tokenizer(["<b>thing</b> 1"]))
    found = {row["uid"]: row["score"] for row in table.to_pylist()}
    assert found["1"] == pytest.approx(float((image * text).sum()), abs=1e-5)  # another batch sums in another order
    assert found["3"] is None
    provenance = json.loads((table.schema.metadata or {})[b"hyperclip"])
    assert provenance["bundle_digest"] == bundle.digest
    with pytest.raises(BadInputError, match="is there already"):
        scored(raw, output)
    scored(raw, str(tmp_path / "clean.parquet"), clean_captions=True)
    assert pq.read_table(tmp_path / "clean.parquet").to_pylist()[1]["score"] != found["1"]


def test_what_has_not_finished_is_told_before_anything_is_started(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["score", str(tmp_path), "--output", str(tmp_path / "scores.parquet")])
    assert isinstance(ended.exception, BadInputError)
    assert "has not finished" in str(ended.exception)
    ended = CliRunner().invoke(app, ["score", str(tmp_path), "--set", "a=1", "--output", str(tmp_path / "scores.parquet")])
    assert "a raw folder has none" in str(ended.exception)


def test_the_file_is_one_that_curation_keeps_by(raw: str, tmp_path: Path) -> None:
    output = str(tmp_path / "scores.parquet")
    scored(raw, output)
    config = CurateConfig(scores=(ScoreConfig(name="clip", uri=output, keep_share=0.5),))
    report = curate(config, raw_uri=raw, output_uri=str(tmp_path / "curated"), progress=no_progress)
    assert (report.kept, report.dropped) == (2, {"score_clip": 2, "truncated": 1})


def test_a_command_that_was_cut_off_goes_on_and_a_damaged_shard_is_left_out(
    raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def stopping(function: Any, arguments: Any, config: Any) -> Any:
        for each in arguments:
            if len(done) == 1:
                done.append(-1)
                raise KeyboardInterrupt
            done.append(each[1])
            yield function(*each)

    monkeypatch.setattr(pipeline.score_samples, "fan_out", stopping)
    output = str(tmp_path / "scores.parquet")
    with pytest.raises(KeyboardInterrupt):
        scored(raw, output)
    tar = Path(raw) / read_download_report(raw).shards[2].path
    tar.write_bytes(tar.read_bytes()[:700])
    found = scored(raw, output)
    assert done == [0, -1, 1, 2]
    assert found.samples == 4
    assert "truncated" in found.damaged[0]
    assert not Path(f"{output}.parts").exists()
