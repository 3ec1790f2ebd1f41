"""The models that one replica holds, by the digest of their bundle."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from serving.schemas import ModelInfo

Engine = TypeVar("Engine")


@dataclass(frozen=True, eq=False)
class LoadedModel(Generic[Engine]):
    """A model that is ready to use, and what is told about it."""

    info: ModelInfo
    engine: Engine


class LoadedModels(Generic[Engine]):
    """A small table, for one event loop.  Whoever holds a dropped model can go on using it."""

    def __init__(self) -> None:
        self._models: dict[str, LoadedModel[Engine]] = {}

    def get(self, digest: str) -> LoadedModel[Engine] | None:
        return self._models.get(digest)

    def put(self, model: LoadedModel[Engine]) -> None:
        self._models[model.info.digest] = model

    def infos(self) -> tuple[ModelInfo, ...]:
        return tuple(model.info for model in self._models.values())
