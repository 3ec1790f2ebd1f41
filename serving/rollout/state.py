"""What outlives a restart: the champion that was last good, and what was refused.  One small file below the task store."""

import logging
from typing import Literal

from infra import artefacts, storage
from infra.config import StrictModel, content_hash
from infra.errors import BadInputError, CorruptArtefactError
from serving.config import ServingConfig
from serving.model_source import ServedModel
from serving.schemas import ModelInfo

logger = logging.getLogger(__name__)

MAX_REFUSED = 20
"""Refused versions that are remembered."""


class RefusedVersion(StrictModel):
    """A version that must not be tried again."""

    version: str
    identity: str
    """`model_source.identity` of it: another registry has its own version 1."""
    reason: str


class RolloutState(StrictModel):
    """`models/HASH.json`."""

    schema_version: Literal[1] = 1
    champion: ServedModel
    info: ModelInfo
    """Of the champion: it was loaded, and gave its golden features."""
    seen: str
    """Identity of the version that the alias pointed to when it was last looked at."""
    refused: tuple[RefusedVersion, ...] = ()


class StateFile:
    """Reads and writes the state of one model name and alias."""

    def __init__(self, config: ServingConfig) -> None:
        assert config.tracking is not None
        self._config = config
        key = content_hash([config.tracking.uri, config.model_name, config.alias])
        self._uri = storage.join(config.task_store_uri, "models", f"{key[:32]}.json")

    def read(self) -> RolloutState | None:
        """None when there is none, or none that can be used: it is then made anew from the registry."""
        if not storage.exists(self._uri):
            return None
        try:
            artefacts.check_schema_version(self._uri, newest=1)
            state = artefacts.read_model(self._uri, RolloutState)
        except (BadInputError, CorruptArtefactError) as error:
            logger.warning("the state of the rollout cannot be used, and is made anew from the registry: %s", error)
            return None
        # where a machine keeps its models is the configuration's to say, not that of the service before
        here = {"cache_path": self._config.cache_path, "tracking": self._config.tracking}
        return state.rebuilt(champion=state.champion.rebuilt(**here))

    def write(self, state: RolloutState) -> None:
        storage.write_atomic(self._uri, state.model_dump_json(indent=1))


def what_changed(before: RolloutState, after: RolloutState) -> list[str]:
    """Lines for who watches a service: which version is served now, and which were refused."""
    lines = [
        f"Version {found.version} is refused, and version {after.champion.version} goes on: {found.reason}"
        for found in after.refused
        if found not in before.refused
    ]
    if after.champion != before.champion:
        lines.append(f"Version {after.champion.version} is served now, after {before.champion.version}.")
    return lines
