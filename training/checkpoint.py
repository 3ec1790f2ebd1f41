"""Checkpoints by parameter name in safetensors: written whole or not at all, readable at any world size and ZeRO stage.

    step-00000200/
        parameters.safetensors  fp32 masters
        moments.safetensors     exp_avg.NAME, exp_avg_sq.NAME
        buffers.safetensors     running statistics
        state.json              step, samples seen, data cursor, seed, config hash
        checkpoint.json         written last: SHA-256 of every file; without it there is no checkpoint

All randomness of a run is drawn from (seed, position), so the seed and the cursor are the whole state of the generators.
"""

import hashlib
import logging
import re
from typing import Literal

from pydantic import NonNegativeInt
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from infra import storage
from infra.config import StrictModel
from infra.errors import CorruptArtefactError, HyperClipError
from training.engine import FullState

logger = logging.getLogger(__name__)

MARKER = "checkpoint.json"
PARTS = ("parameters", "moments", "buffers")


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


class CheckpointMarker(StrictModel):
    schema_version: Literal[1] = 1
    files: dict[str, str]


def save_checkpoint(folder_uri: str, state: TrainState, full: FullState) -> str:
    """Write one checkpoint under `folder_uri`; returns its URI."""
    uri = storage.join(folder_uri, f"step-{state.step:08d}")
    storage.remove(uri)  # what a killed writer left
    contents = {f"{part}.safetensors": save(getattr(full, part)) for part in PARTS}
    contents["state.json"] = state.model_dump_json(indent=1).encode()
    for name, data in contents.items():
        storage.write_atomic(storage.join(uri, name), data)
    marker = CheckpointMarker(files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()})
    storage.write_atomic(storage.join(uri, MARKER), marker.model_dump_json(indent=1))
    return uri


def load_checkpoint(uri: str) -> tuple[TrainState, FullState]:
    """Read one checkpoint and verify it.

    Raises:
        CorruptArtefactError: unfinished, or a file is missing, changed or damaged; it is named.
        BadInputError: a newer version of this project wrote it.
    """
    marker_uri = storage.join(uri, MARKER)
    if not storage.exists(marker_uri):
        raise CorruptArtefactError(f"{uri} was not finished: it has no {MARKER}")
    storage.check_schema_version(marker_uri, newest=1)
    marker = storage.read_model(marker_uri, CheckpointMarker)
    contents = {name: _read_verified(storage.join(uri, name), digest) for name, digest in marker.files.items()}
    try:
        state = TrainState.model_validate_json(contents["state.json"])
        parts: dict[str, dict[str, Tensor]] = {part: load(contents[f"{part}.safetensors"]) for part in PARTS}
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptArtefactError(f"{uri} is not a checkpoint of ours: {error}") from error
    return state, FullState(**parts)


def load_newest(folder_uri: str, *, config_hash: str) -> tuple[TrainState, FullState] | None:
    """The newest good checkpoint of this run, or None.  Damaged ones are passed over with their reason logged.

    Raises:
        HyperClipError: the checkpoints belong to a run with another configuration.
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


def list_checkpoints(folder_uri: str) -> list[str]:
    """URIs of checkpoint folders, oldest first, finished or not."""
    return [uri for uri in storage.list_folders(folder_uri) if re.fullmatch(r"step-\d{8}", uri.rpartition("/")[2])]


def remove_old(folder_uri: str, *, keep: int) -> None:
    """Keep the newest `keep` checkpoints."""
    for uri in list_checkpoints(folder_uri)[:-keep]:
        storage.remove(storage.join(uri, MARKER))  # first, so that a half-removed checkpoint is not taken for a whole one
        storage.remove(uri)


def _read_verified(uri: str, digest: str) -> bytes:
    if not storage.exists(uri):
        raise CorruptArtefactError(f"{uri} is missing")
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != digest:
        raise CorruptArtefactError(f"{uri} has changed since it was written (sha256 differs)")
    return data
