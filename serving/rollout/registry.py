"""The MLflow registry as the rollout needs it, and the champion that an application begins with."""

import logging
import threading
from concurrent.futures import Future
from functools import cached_property

from infra.errors import HyperClipError
from infra.model_registry import ModelRegistry, ModelVersion
from infra.tracking import Tracker
from serving.config import ServingConfig
from serving.engines.image_encoder import model_info
from serving.model_source import ServedModel, identity, load, registered_model
from serving.rollout.state import RolloutState, StateFile

logger = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""How long a start waits for a registry that does not answer, when it has a champion that was good."""


class FollowedRegistry:
    """One model name and alias."""

    def __init__(self, config: ServingConfig) -> None:
        self._config = config

    @cached_property
    def _registry(self) -> ModelRegistry:
        assert self._config.tracking is not None
        return ModelRegistry(Tracker(self._config.tracking))

    def target(self) -> ModelVersion | None:
        return self._registry.version_of(self._config.model_name, self._config.alias)

    def version(self, version: str) -> ModelVersion:
        return self._registry.version(self._config.model_name, version)

    def served(self, registered: ModelVersion) -> ServedModel:
        return registered_model(self._config, registered)


def begin(config: ServingConfig) -> ServedModel:
    """Decide which champion a following service starts with, and store that: what the alias points to if it proves good, else
    the champion that was last good.

    Raises:
        BadInputError: there is no such model, and none that was served before.
        CorruptArtefactError: it is damaged, and none was served before.
        TrackingUnavailableError: the registry cannot be asked, and none was served before.
    """
    file = StateFile(config)
    known = file.read()
    try:
        registered = _target(config, patience_s=None if known is None else PATIENCE_S)
        if known is not None and identity(registered) in {_identity(known), *(found.identity for found in known.refused)}:
            return known.champion
        state = _proven(config, registered)
    except (HyperClipError, TimeoutError) as error:
        if known is None:
            raise
        logger.warning("starting with version %s, which was last good: %s", known.champion.version, error)
        return known.champion
    if known is not None:
        state = state.rebuilt(refused=known.refused)
    file.write(state)
    return state.champion


def _target(config: ServingConfig, *, patience_s: float | None) -> ModelVersion:
    """Raises TimeoutError when the registry has not answered by then; MLflow itself tries for minutes."""
    assert config.tracking is not None
    tracking, found = config.tracking, Future[ModelVersion]()

    def ask() -> None:
        try:
            found.set_result(ModelRegistry(Tracker(tracking)).version(config.model_name, config.alias))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=ask, daemon=True, name="registry").start()
    return found.result(patience_s)


def _proven(config: ServingConfig, registered: ModelVersion) -> RolloutState:
    served = registered_model(config, registered)
    bundle = load(served, device="cpu")
    return RolloutState(
        champion=served, info=model_info(bundle, name=served.name, version=served.version), seen=identity(registered)
    )


def _identity(state: RolloutState) -> str:
    assert state.champion.registered is not None
    return identity(state.champion.registered)
