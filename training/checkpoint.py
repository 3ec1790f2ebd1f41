"""Checkpoints by parameter name in safetensors: written whole or not at all, readable at any world size and ZeRO stage.

    step-00000200/
        parameters.safetensors  fp32 masters
        moments.safetensors     exp_avg.NAME, exp_avg_sq.NAME
        buffers.safetensors     running statistics
        state.json              step, samples seen, data cursor, seed, config hash
        checkpoint.json         written last: bytes and SHA-256 of every file; without it there is no checkpoint

All randomness of a run is drawn from (seed, position), so the seed and the cursor are the whole state of the generators.
"""

import hashlib
import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import NonNegativeInt, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra import artefacts, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError, CorruptArtefactError, HyperClipError
from training.engine import FullState

logger = logging.getLogger(__name__)

MARKER = "checkpoint.json"
STATE = "state.json"
PARTS = ("parameters", "moments", "buffers")
FILES = {STATE, *(f"{part}.safetensors" for part in PARTS)}
SCHEMA_VERSION = 1


class TrainState(StrictModel):
    """Where a run is."""

    schema_version: Literal[1] = 1
    step: NonNegativeInt = 0
    """Optimizer steps done."""
    next_batch: NonNegativeInt = 0
    """Data cursor: number of the next contrastive batch; with batch size and seed it names the next samples."""
    samples_seen: NonNegativeInt = 0
    seed: NonNegativeInt
    config_hash: str
    """Of what must not change between the runs that share a checkpoint."""


class CheckpointFile(StrictModel):
    bytes: NonNegativeInt
    sha256: str


class CheckpointMarker(StrictModel):
    """`checkpoint.json`."""

    schema_version: Literal[1] = 1
    files: dict[str, CheckpointFile]
    digest: str
    """Of `files`: the identity of the checkpoint, and proof that the marker itself is whole."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.files.keys() != FILES:
            raise ValueError(f"it lists {', '.join(sorted(self.files)) or 'no files'}, expected {', '.join(sorted(FILES))}")
        if self.digest != _digest(self.files):
            raise ValueError("its list of files does not have the digest it names")
        return self


class CheckpointManifest(StrictModel):
    """What a run's record says of one checkpoint: enough to find it and to prove it."""

    schema_version: Literal[1] = 1
    uri: str
    state: TrainState
    files: dict[str, CheckpointFile]
    digest: str


def save_checkpoint(folder_uri: str, state: TrainState, full: FullState) -> CheckpointManifest:
    """Write one checkpoint under `folder_uri`, in place of an unfinished one of the same step.

    Raises:
        HyperClipError: a parameter is not finite; nothing is written.
    """
    if name := _not_finite(full.parameters):
        raise HyperClipError(f"parameter {name} is not finite at step {state.step}; no checkpoint is written of it")
    uri = checkpoint_uri(folder_uri, state.step)
    remove_checkpoint(uri)  # what a killed writer left
    files: dict[str, CheckpointFile] = {}
    for part in PARTS:
        with storage.staged_file(storage.join(uri, f"{part}.safetensors")) as path:
            save_file(getattr(full, part), path)  # straight from the tensors' memory: no second copy of the state
            files[f"{part}.safetensors"] = describe_file(path)
    with storage.staged_file(storage.join(uri, STATE)) as path:
        path.write_text(state.model_dump_json(indent=1))
        files[STATE] = describe_file(path)
    marker = CheckpointMarker(files=files, digest=_digest(files))
    storage.write_atomic(storage.join(uri, MARKER), marker.model_dump_json(indent=1))
    return CheckpointManifest(uri=uri, state=state, files=files, digest=marker.digest)


def describe_checkpoint(uri: str) -> CheckpointManifest:
    """The manifest of a finished checkpoint, from its marker and state alone.  Raises as `load_checkpoint`."""
    marker = read_marker(uri)
    state = artefacts.read_model(storage.join(uri, STATE), TrainState)
    return CheckpointManifest(uri=uri, state=state, files=marker.files, digest=marker.digest)


def load_checkpoint(uri: str) -> tuple[TrainState, FullState]:
    """Read one checkpoint and verify it.

    Raises:
        CorruptArtefactError: unfinished, or a file is missing, changed, swapped or damaged; it is named.
        BadInputError: a newer version of this project wrote it.
    """
    marker = read_marker(uri)
    with storage.localized(uri) as folder:
        for name, file in marker.files.items():
            _verify(storage.join(uri, name), folder / name, file)
        try:
            state = TrainState.model_validate_json((folder / STATE).read_bytes())
            parts: dict[str, dict[str, Tensor]] = {part: load_file(folder / f"{part}.safetensors") for part in PARTS}
        except (SafetensorError, ValueError) as error:
            raise CorruptArtefactError(f"{uri} is not a checkpoint of ours: {error}") from error
    if step_of(uri) != state.step:
        raise CorruptArtefactError(f"{storage.join(uri, STATE)} is of step {state.step}: it belongs to another checkpoint")
    if bad := _not_finite(parts["parameters"]):
        raise CorruptArtefactError(f"{uri}/parameters.safetensors holds values of {bad} that are not finite")
    return state, FullState(**parts)


def load_newest(folder_uri: str, *, config_hash: str) -> tuple[TrainState, FullState] | None:
    """The newest good checkpoint of this run, or None.  Damaged ones are passed over with their reason logged.

    Raises:
        HyperClipError: the checkpoints belong to a run with another configuration.
        BadInputError: a newer version of this project wrote one.  It is not passed over: what this version would do
            instead could end in the removal of newer work.
    """
    for uri in reversed(list_checkpoints(folder_uri)):
        try:
            state, full = load_checkpoint(uri)
        except CorruptArtefactError as error:
            logger.warning("passing over a damaged checkpoint: %s", error)
            continue
        if state.config_hash != config_hash:
            raise HyperClipError(f"{uri} belongs to another training configuration; give this one a folder of its own")
        return state, full
    return None


def newest_step(folder_uri: str) -> int | None:
    """The step of the newest finished checkpoint, or None.  By its marker alone: `load_newest` reads and verifies it."""
    finished = (uri for uri in reversed(list_checkpoints(folder_uri)) if storage.exists(storage.join(uri, MARKER)))
    newest = next(finished, None)
    return None if newest is None else step_of(newest)


def read_marker(uri: str) -> CheckpointMarker:
    """The marker of a finished checkpoint.  Raises as `load_checkpoint`."""
    marker_uri = storage.join(uri, MARKER)
    if not storage.exists(marker_uri):
        raise CorruptArtefactError(f"{uri} was not finished: it has no {MARKER}")
    artefacts.check_schema_version(marker_uri, newest=SCHEMA_VERSION)
    return artefacts.read_model(marker_uri, CheckpointMarker)


def list_checkpoints(folder_uri: str) -> list[str]:
    """URIs of checkpoint folders, oldest first, finished or not."""
    return [uri for uri in storage.list_folders(folder_uri) if re.fullmatch(r"step-\d{8}", uri.rpartition("/")[2])]


def checkpoint_uri(folder_uri: str, step: int) -> str:
    return storage.join(folder_uri, f"step-{step:08d}")


def step_of(uri: str) -> int:
    return int(uri.rpartition("step-")[2])


def remove_old(folder_uri: str, *, keep: int, spare: Collection[str] = ()) -> None:
    """Keep the newest `keep` whole checkpoints, and remove what is older, unfinished or not.

    Whole means that the marker is good and every file has its size: hashes of a run's own checkpoints are not computed again
    at each save.  A torn checkpoint does not count, so it can never push out the last good one.

    Args:
        spare: URIs that stay all the same, because somebody reads them.
    """
    newest_first = list(reversed(list_checkpoints(folder_uri)))
    whole = [uri for uri in newest_first if _is_whole(uri)]
    if len(whole) < keep:
        return
    for uri in newest_first[newest_first.index(whole[keep - 1]) + 1 :]:
        if uri not in spare:
            remove_checkpoint(uri)


def remove_checkpoint(uri: str) -> None:
    storage.remove(storage.join(uri, MARKER))  # first, so that a half-removed checkpoint is not taken for a whole one
    storage.remove(uri)


def _is_whole(uri: str) -> bool:
    try:
        marker = read_marker(uri)
    except CorruptArtefactError:
        return False
    except BadInputError:
        return True  # of a newer version: not ours to judge
    paths = {name: storage.join(uri, name) for name in marker.files}
    return all(storage.exists(path) and storage.size(path) == marker.files[name].bytes for name, path in paths.items())


def describe_file(path: Path) -> CheckpointFile:
    """What a marker says of a file."""
    with path.open("rb") as file:
        return CheckpointFile(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _verify(uri: str, path: Path, expected: CheckpointFile) -> None:
    if not path.is_file():
        raise CorruptArtefactError(f"{uri} is missing")
    if (found := path.stat().st_size) != expected.bytes:
        raise CorruptArtefactError(f"{uri} has {found:,} bytes, {expected.bytes:,} were written")
    if describe_file(path).sha256 != expected.sha256:
        raise CorruptArtefactError(f"{uri} has changed since it was written (sha256 differs)")


def _digest(files: dict[str, CheckpointFile]) -> str:
    return content_hash({name: file.model_dump() for name, file in files.items()})


def _not_finite(parameters: dict[str, Tensor]) -> str | None:
    """Name of the first parameter with an infinite value or NaN."""
    return next((name for name, value in parameters.items() if not bool(torch.isfinite(value).all())), None)
