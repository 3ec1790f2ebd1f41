"""The pictures a model was trained on, as its notice needs them: how many of each source, and their licences."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.url_list import parquet_files
from infra import storage
from infra.errors import BadInputError

IMAGE, SOURCE, LICENCE, ATTRIBUTION = "image", "source", "licence", "attribution"
ROWS_AT_ONCE = 1024

_NOTICE = """The shipped model of HyperCLIP: {pictures:,} drawings by others were needed to train it
========================================================================

The weights in this folder are licensed under the Apache License 2.0, as the project is.  They were trained on the pictures
counted below; none of the pictures is in this folder.  All of them are under licences that allow it, and we thank everyone
who drew them.  They were resized and varied (background, colour, position) for training.

"""


class Source(NamedTuple):
    name: str
    licence: str
    attribution: str
    """Empty where the pictures name none."""


@dataclass(frozen=True)
class TrainedOn:
    pictures_of: Counter[Source]
    hashes: frozenset[bytes]
    """SHA-256 of every picture."""

    def among(self, pictures: Iterable[bytes]) -> int:
        """How many of these pictures were trained on."""
        return sum(_hash(picture) in self.hashes for picture in pictures)

    def notice(self) -> str:
        """`NOTICE`: sources with the most pictures first."""
        rows = sorted(self.pictures_of.items(), key=lambda entry: (-entry[1], entry[0]))
        width = max(len(source.name) for source, _ in rows)
        licences = max(len(source.licence) for source, _ in rows)
        lines = [
            f"{count:8,}  {source.name:{width}}  {source.licence:{licences}}  {source.attribution}".rstrip()
            for source, count in rows
        ]
        return _NOTICE.format(pictures=self.pictures_of.total()) + "\n".join(lines) + "\n"


def read_trained_on(uris: Sequence[str], *, where: Mapping[str, str]) -> TrainedOn:
    """Count the pictures of parquet files with the columns image, source, licence and, if there is one, attribution.

    Args:
        uris: parquet files, or folders of them.
        where: column -> value of the rows that were trained on.

    Raises:
        BadInputError: a column is missing, a picture has no source or licence, or there is no picture.
    """
    pictures_of: Counter[Source] = Counter()
    hashes: set[bytes] = set()
    for uri in (file for given in uris for file in parquet_files(given)):
        with storage.open_read(uri) as file:
            parquet = pq.ParquetFile(file)
            columns = [IMAGE, SOURCE, LICENCE, *where]
            if missing := sorted(set(columns) - set(parquet.schema_arrow.names)):
                raise BadInputError(f"{uri} has no column {', '.join(missing)}; its columns: {parquet.schema_arrow.names}")
            if ATTRIBUTION in parquet.schema_arrow.names:
                columns.append(ATTRIBUTION)
            for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(dict.fromkeys(columns))):
                for row in pa.Table.from_batches([batch]).to_pylist():
                    if any(str(row[column]) != value for column, value in where.items()):
                        continue
                    if not row[SOURCE] or not row[LICENCE]:
                        raise BadInputError(f"{uri} has a picture without {SOURCE} or {LICENCE}: {row[SOURCE]}, {row[LICENCE]}")
                    pictures_of[Source(row[SOURCE], row[LICENCE], row.get(ATTRIBUTION) or "")] += 1
                    hashes.add(_hash(row[IMAGE]))
    if not pictures_of:
        raise BadInputError(f"{', '.join(uris)}: no picture was trained on {dict(where) or ''}".rstrip())
    return TrainedOn(pictures_of, frozenset(hashes))


def _hash(picture: bytes) -> bytes:
    return hashlib.sha256(picture).digest()
