"""A workspace to forget samples in."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import data_prep.curation.curate
import data_prep.import_pictures
import data_prep.reshard
from data_prep.curation.curate import KEEP_LIST_NAME, CurateConfig, curate
from data_prep.import_pictures import import_pictures
from data_prep.manifest import read_manifest, verify_shards
from data_prep.partition_report import write_table
from data_prep.picture_partition import ImportConfig
from data_prep.raw import OUTCOME_SCHEMA, iter_outcomes
from data_prep.removal.requests import RemovalRequest
from data_prep.reshard import ReshardConfig, reshard
from infra import storage
from pipeline.config import RunConfig, load_run_config
from pipeline.forget import Forgotten, forget
from pipeline.steps import RECORD_NAME, StepRecord
from tests.unit.data_helpers import (
    no_progress,
    picture,
    run_here,
    write_parquet,
)

QUICKSTART = Path(__file__).parents[2] / "pipeline" / "configs" / "quickstart.yaml"
SECRET = "a caption nobody should read again"
IMPORT, CURATE, SHARD, TRAIN = (f"{name}-0123456789ab" for name in ("import-train", "curate-train", "shard-train", "train"))


def rows() -> list[dict[str, Any]]:
    return [{"uid": f"u{i}", "image": picture(i), "caption": SECRET if i in (2, 5) else f"thing {i}"} for i in range(12)]


class Workspace:
    """Twelve samples through the data steps, as if downloaded; u2 and u5 are on a host of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root / "w"
        self.raw, self.curated, self.shards = f"{self.root}/{IMPORT}/raw", f"{self.root}/{CURATE}", f"{self.root}/{SHARD}"
        self.pictures = write_parquet(root / "pictures.parquet", rows())
        self.import_into(self.raw)
        for table in list(iter_outcomes(self.raw)):
            entries = [row | {"url": url_of(row["uid"])} for row in table.to_pylist()]
            write_table(pa.Table.from_pylist(entries, schema=OUTCOME_SCHEMA), f"{self.raw}/outcomes/00000.parquet")
        self.curate()
        self.reshard(self.shards)
        for name, inputs in (
            (IMPORT, {}),
            (TRAIN, {"shard-train": SHARD}),
            ("describe-train-0123456789ab", {"shard-train": SHARD}),
        ):
            record = StepRecord(step=name, summary="", seconds=1, inputs=inputs)
            storage.write_atomic(f"{self.root}/{name}/{RECORD_NAME}", record.model_dump_json())
        self.config: RunConfig = load_run_config(QUICKSTART, (f"workspace={self.root}",))

    def import_into(self, raw: str) -> None:
        config = ImportConfig(samples_per_shard=4, min_success_rate=0)
        import_pictures(self.pictures, config=config, output_uri=raw, progress=no_progress)

    def curate(self) -> None:
        curate(CurateConfig(), raw_uri=self.raw, output_uri=self.curated, progress=no_progress)

    def reshard(self, output: str) -> None:
        config, keep = ReshardConfig(samples_per_shard=5), f"{self.curated}/{KEEP_LIST_NAME}"
        reshard(config, raw_uri=self.raw, keep_list_uri=keep, output_uri=output, progress=no_progress)

    def forget(self, *, dry_run: bool = False, **named: set[str]) -> Forgotten:
        request = RemovalRequest(**{name: frozenset(values) for name, values in named.items()})
        return forget(self.config, request, dry_run=dry_run)

    def bytes_of_all(self) -> dict[str, bytes]:
        return {
            str(path): path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file() and path.name != ".lock"
        }

    def uids_in_shards(self) -> set[str]:
        found = set()
        manifest = read_manifest(self.shards)
        verify_shards(manifest, self.shards)
        for shard in manifest.shards:
            with tarfile.open(fileobj=io.BytesIO(Path(self.shards, shard.path).read_bytes())) as tar:
                found |= {name.rpartition(".")[0] for name in tar.getnames()}
        assert manifest.num_samples == len(found)
        return found


def url_of(uid: str) -> str:
    return f"http://{'pics.private.example' if uid in ('u2', 'u5') else 'cdn.example'}/{uid}.webp"


def run_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.curation.curate, "stream", run_here)
    for module in (data_prep.import_pictures, data_prep.reshard):
        monkeypatch.setattr(module, "fan_out", run_here)
