"""The bundled sample: a few hundred things drawn by five artists, one of them held out for evaluation."""

from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra import storage

SAMPLE_URI = str(Path(__file__).parent / "pictures.parquet")
Split = Literal["train", "evaluation"]

SAMPLE_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("image", pa.binary()),
        ("caption", pa.string()),
        ("concept", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("attribution", pa.string()),
        ("split", pa.string()),
    ]
)


def read_sample(split: Split | None = None) -> pa.Table:
    """The sample, of `SAMPLE_SCHEMA`; all of it, or one split."""
    with storage.open_read(SAMPLE_URI) as file:
        table = pq.read_table(file)
    return table if split is None else table.filter(pc.equal(table["split"], split))
