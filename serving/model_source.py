"""Where the served model comes from, and the folder in which each machine keeps it.

The application is built for one exact version (`resolve`); every replica then fetches that version for itself (`fetch`), so a
replica that is started later, or on another machine, gets the same model.
"""

import os
import secrets
import shutil
from pathlib import Path

from infra import storage
from infra.config import StrictModel, content_hash
from infra.errors import CorruptArtefactError
from infra.model_registry import ModelRegistry, ModelVersion
from infra.tracking import Tracker, TrackingConfig
from serving.config import ServingConfig
from training.bundle import BUNDLE_NAME, BundleManifest


class ServedModel(StrictModel):
    """One exact model."""

    name: str
    version: str
    """What answers carry."""
    bundle_uri: str | None
    tracking: TrackingConfig | None
    registered: ModelVersion | None
    cache_path: Path


def resolve(config: ServingConfig) -> ServedModel:
    """Find out which model a configuration means now.

    Raises:
        BadInputError: no such model version, or no bundle at that address.
    """
    if config.bundle_uri is not None:
        manifest = storage.read_model(storage.join(config.bundle_uri, BUNDLE_NAME), BundleManifest)
        return ServedModel(
            name=config.model_name,
            version=f"bundle-{manifest.digest[:12]}",
            bundle_uri=config.bundle_uri,
            tracking=None,
            registered=None,
            cache_path=config.cache_path,
        )
    assert config.tracking is not None  # the configuration has checked it
    registered = ModelRegistry(Tracker(config.tracking)).version(config.model_name, config.alias)
    return ServedModel(
        name=config.model_name,
        version=registered.version,
        bundle_uri=None,
        tracking=config.tracking,
        registered=registered,
        cache_path=config.cache_path,
    )


def fetch(model: ServedModel) -> Path:
    """The bundle folder on this machine, downloaded unless it is there already.

    Raises:
        CorruptArtefactError: the model holds no bundle, or several.
    """
    if model.bundle_uri is not None and storage.is_local(model.bundle_uri):
        return storage.local_path(model.bundle_uri)
    # a version number alone is not enough: another registry, or the same one made anew, has its own version 1
    cache = model.cache_path.expanduser()
    target = cache / content_hash(model.model_dump(mode="json", exclude={"cache_path"}))[:32]
    if target.is_dir():
        return find_bundle(target)
    temporary = cache / f".{target.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir(parents=True)
    try:
        _download(model, temporary)
        find_bundle(temporary)
        _publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return find_bundle(target)


def find_bundle(folder: Path) -> Path:
    """The one bundle below a folder, wherever MLflow has put it.

    Raises:
        CorruptArtefactError: there is none, or more than one.
    """
    found = sorted(folder.rglob(BUNDLE_NAME))
    if len(found) != 1:
        raise CorruptArtefactError(f"{folder} holds {len(found)} files named {BUNDLE_NAME}, expected one")
    return found[0].parent


def _download(model: ServedModel, folder: Path) -> None:
    if model.bundle_uri is not None:
        for uri in storage.list_files(model.bundle_uri):
            (folder / uri.rpartition("/")[2]).write_bytes(storage.read_bytes(uri))
        return
    assert model.tracking is not None and model.registered is not None
    ModelRegistry(Tracker(model.tracking)).download_model(model.registered, folder)


def _publish(temporary: Path, target: Path) -> None:
    try:
        os.rename(temporary, target)  # noqa: PTH104  (fails when another replica was first; Path.rename would not say more)
    except OSError:
        if not target.is_dir():
            raise
