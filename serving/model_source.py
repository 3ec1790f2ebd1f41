"""Where a served model comes from, and the folder in which each machine keeps it.

A `ServedModel` is one exact version; every replica fetches it for itself (`fetch`), so a replica that is started later, or on
another machine, gets the same model, and checks it for itself (`load`).
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from infra import artefacts, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError, CorruptArtefactError
from infra.model_registry import ModelRegistry, ModelVersion
from infra.tracking import Tracker, TrackingConfig
from serving.config import ServingConfig
from training.bundle import BUNDLE_NAME, Bundle, BundleManifest, check_bundle_files, load_bundle

Found = TypeVar("Found")


class ServedModel(StrictModel):
    """One exact model."""

    name: str
    version: str
    """What answers carry."""
    digest: str
    """Of the bundle."""
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
        manifest = artefacts.read_model(storage.join(config.bundle_uri, BUNDLE_NAME), BundleManifest)
        return ServedModel(
            name=config.model_name,
            version=f"bundle-{manifest.digest[:12]}",
            digest=manifest.digest,
            bundle_uri=config.bundle_uri,
            tracking=None,
            registered=None,
            cache_path=config.cache_path,
        )
    assert config.tracking is not None  # the configuration has checked it
    registered = ModelRegistry(Tracker(config.tracking)).version(config.model_name, config.alias)
    return registered_model(config, registered)


def registered_model(config: ServingConfig, registered: ModelVersion) -> ServedModel:
    """A registered version, fetched to learn its digest, its files checked: a model that is held already under the same digest
    says nothing about them.

    Raises:
        BadInputError: a newer version of this project wrote its bundle.
        CorruptArtefactError: it holds no bundle, several, or a damaged one.
    """
    unknown = ServedModel(
        name=config.model_name,
        version=registered.version,
        digest="",
        bundle_uri=None,
        tracking=config.tracking,
        registered=registered,
        cache_path=config.cache_path,
    )
    return unknown.rebuilt(digest=_checked(unknown, check_bundle_files).digest)


def identity(registered: ModelVersion) -> str:
    """Tells a version from every other: a registry that was made anew has its own version 1, with other runs."""
    return content_hash([registered.name, registered.version, registered.run_id, registered.source_uri])[:32]


def load(model: ServedModel, *, device: str) -> Bundle:
    """Fetch a model and load it, which proves that it gives its golden features.

    Raises:
        BadInputError: a newer version of this project wrote its bundle.
        CorruptArtefactError: it is damaged, or is no longer the model that was meant.
    """
    bundle = _checked(model, lambda folder: load_bundle(folder, device=device))
    if bundle.digest != model.digest:
        raise CorruptArtefactError(
            f"the bundle has the digest {bundle.digest[:12]}, expected {model.digest[:12]}: it was replaced"
        )
    return bundle


def fetch(model: ServedModel) -> Path:
    """The bundle folder on this machine, downloaded unless it is there already.

    Raises:
        CorruptArtefactError: the model holds no bundle, or several.
    """
    if model.bundle_uri is not None and storage.is_local(model.bundle_uri):
        return storage.local_path(model.bundle_uri)
    target = _cached(model)
    if not target.is_dir():
        with _downloaded(model) as temporary:
            _publish(temporary, target)
    return find_bundle(target)


@contextmanager
def _downloaded(model: ServedModel) -> Iterator[Path]:
    """A fresh copy beside the others, of one bundle, which is removed at the end unless it has got another name."""
    target = _cached(model)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        _download(model, temporary)
        find_bundle(temporary)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_bundle(folder: Path) -> Path:
    """The one bundle below a folder, wherever MLflow has put it.

    Raises:
        CorruptArtefactError: there is none, or more than one.
    """
    found = sorted(folder.rglob(BUNDLE_NAME))
    if len(found) != 1:
        raise CorruptArtefactError(f"{folder} holds {len(found)} files named {BUNDLE_NAME}, expected one")
    return found[0].parent


def _checked(model: ServedModel, check: Callable[[Path], Found]) -> Found:
    """What a check finds in the fetched folder, or in a fresh copy when the one on this machine is damaged."""
    try:
        try:
            return check(fetch(model))
        except CorruptArtefactError:
            if not _cached(model).is_dir():
                raise
            return _replaced(model, check)
    except (BadInputError, CorruptArtefactError) as error:  # clients are told why: without the folders of this machine
        folder = re.escape(str(_cached(model).parent)) + r"/\.?[0-9a-f]{32}(\.[0-9a-f]+\.tmp)?(/artifacts)?(/bundle(?!\.))?"
        raise type(error)(re.sub(folder, f"version {model.version}", str(error))) from error


def _replaced(model: ServedModel, check: Callable[[Path], Found]) -> Found:
    """Check a fresh copy, and put it in the place of the one on this machine if it is good: other replicas may be reading
    that one, so it is never changed and goes under another name first."""
    target = _cached(model)
    with _downloaded(model) as temporary:
        found = check(find_bundle(temporary))
        damaged = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        with suppress(FileNotFoundError):  # another replica is doing the same
            target.rename(damaged)
        _publish(temporary, target)
        shutil.rmtree(damaged, ignore_errors=True)
    return found


def _cached(model: ServedModel) -> Path:
    # a version number alone is not enough: another registry, or the same one made anew, has its own version 1
    known = {
        "name": model.name,
        "bundle": model.bundle_uri and [model.bundle_uri, model.digest],
        "registry": model.tracking and model.tracking.uri,
        "registered": model.registered and identity(model.registered),
    }
    return model.cache_path.expanduser() / content_hash(known)[:32]


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
