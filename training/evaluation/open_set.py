"""Which kind of evaluation set an address holds."""

from collections.abc import Mapping, Sequence

from infra import storage
from infra.errors import BadInputError
from training.evaluation.evaluation_set import EvaluationSet, ReadingConfig
from training.evaluation.known_names import beside_known
from training.evaluation.parquet_set import parquet_names, parquet_set
from training.evaluation.shard_set import shard_set
from training.evaluation.webdataset_set import CLASS_NAMES, NUM_SHARDS, webdataset_set
from training.shard_reader import open_shards

MANIFEST = "manifest.json"


def open_evaluation_set(
    uris: Sequence[str],
    *,
    readings: Mapping[str, ReadingConfig],
    only: Mapping[str, str],
    names_from: Sequence[str] = (),
) -> EvaluationSet:
    """Parquet files (or a folder of them), a CLIP_benchmark folder, or a folder of our shards.

    Args:
        names_from: parquet files, or folders of them, whose names stand beside those of the pictures in tasks of kind
            `held_out_among_known`; no picture of theirs is read.

    Raises:
        BadInputError: nothing of the kind is there, or it cannot be used.
    """
    found = _opened(uris, readings=readings, only=only)
    if not names_from:
        return found
    return beside_known(found, parquet_names([file for uri in names_from for file in _parquet_files(uri)]))


def _opened(uris: Sequence[str], *, readings: Mapping[str, ReadingConfig], only: Mapping[str, str]) -> EvaluationSet:
    if len(uris) == 1 and not uris[0].endswith(".parquet"):
        (uri,) = uris
        is_shards = storage.exists(storage.join(uri, MANIFEST))
        if is_shards or storage.exists(storage.join(uri, CLASS_NAMES)) or storage.exists(storage.join(uri, "test", NUM_SHARDS)):
            if only:
                raise BadInputError(f"rows are chosen in parquet files, and {uri} holds none")
            if is_shards:
                return shard_set(open_shards(uri), readings=readings)
            if readings:
                raise BadInputError(f"further readings need columns; {uri}, a CLIP_benchmark folder, has class numbers only")
            return webdataset_set(uri)
    files = [file for uri in uris for file in _parquet_files(uri)]
    return parquet_set(files, readings=readings, only=only)


def _parquet_files(uri: str) -> list[str]:
    if uri.endswith(".parquet"):
        return [uri]
    if found := storage.list_files(uri, suffix=".parquet"):
        return found
    what = "holds nothing to evaluate on" if storage.exists(uri) else "does not exist"
    raise BadInputError(
        f"{uri} {what}; give a .parquet file or a folder of them (columns image and caption), a CLIP_benchmark folder "
        f"(with {CLASS_NAMES}), or a folder of training shards (with {MANIFEST})"
    )
