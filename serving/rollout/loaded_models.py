"""The models that one replica holds, by the digest of their bundle: what the plan says, loaded beside each other.

Loading happens in a thread of its own while the replica goes on serving.  A call for a model that is planned but not there yet
waits for it; whoever holds a model that is dropped can go on using it.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from infra.errors import BadInputError, CorruptArtefactError
from infra.tracking import TrackingUnavailableError
from serving.model_source import ServedModel
from serving.rollout.plan import Part, Plan, PlanSource, Report
from serving.schemas import ModelInfo
from serving.single_flight import SingleFlight

logger = logging.getLogger(__name__)

Engine = TypeVar("Engine")
RETRY_S = 5.0
"""After something that may pass: a registry or a store that does not answer."""


@dataclass(frozen=True, eq=False)
class LoadedModel(Generic[Engine]):
    """A model that is ready to use, and what is told about it."""

    info: ModelInfo
    engine: Engine


class LoadedModels(Generic[Engine]):
    """For one event loop; the constructor loads the champion and raises what that raises."""

    def __init__(
        self,
        source: PlanSource,
        load: Callable[[ServedModel], LoadedModel[Engine]],
        *,
        part: Part,
        warm: Callable[[Plan, str], Awaitable[None]] | None = None,
    ) -> None:
        """Args: load, runs in a thread; warm, does what the plan wants done for the candidate (its digest) once it is here."""
        self._source, self._load, self._part, self._warm = source, load, part, warm
        self._name = f"{part}-{secrets.token_hex(6)}"
        self._models: dict[str, LoadedModel[Engine]] = {}
        self._refused: dict[str, str] = {}
        self._loading: set[str] = set()
        self._retry_at: dict[str, float] = {}
        self._warming: tuple[str, asyncio.Task[None]] | None = None
        self._flights = SingleFlight()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._plan = source.first()
        champion = self._plan.champion.served
        assert champion is not None
        self._models[champion.digest] = load(champion)

    async def find(self, digest: str) -> LoadedModel[Engine] | None:
        """The model, loaded now if the plan has it; None when it has not, or when it cannot be loaded."""
        if (model := self._models.get(digest)) is not None:
            return model
        if digest not in self._plan.held():
            await self._exchange()
        if (served := self._plan.held().get(digest)) is None or digest in self._refused:
            return None
        await self._obtain(served)
        return self._models.get(digest)

    def digests(self) -> frozenset[str]:
        """Of what is here, and of what is to be; from any thread."""
        return frozenset(self._models) | frozenset(self._plan.held())

    def infos(self) -> tuple[ModelInfo, ...]:
        return tuple(model.info for model in self._models.values())

    async def follow(self, interval_s: float) -> None:
        """Exchange reports for the plan, and load and drop what it says; runs until it is cancelled."""
        obtaining: asyncio.Task[None] | None = None
        while True:
            await self._exchange()
            if obtaining is None or obtaining.done():  # in the background, so that reports go on meanwhile
                obtaining = asyncio.create_task(self._obtain_missing())
            self._drop_unplanned()
            self._warm_candidate()
            await asyncio.sleep(interval_s)

    async def _exchange(self) -> None:
        try:
            self._plan = await self._source.report(self._report())
        except Exception as error:  # the rollout restarts: what is held goes on being served
            logger.info("no plan from the rollout: %r", error)
            return
        for known in (self._refused, self._retry_at):  # what was planned anew later may be tried anew
            for digest in known.keys() - self._plan.held().keys():
                del known[digest]

    def _report(self) -> Report:
        warmed = self._warming is not None and self._warming[1].done()
        return Report(
            replica=self._name,
            part=self._part,
            loaded=self.infos(),
            loading=tuple(self._loading),
            refused=dict(self._refused),
            warmed=self._warming[0] if self._warming is not None and warmed else None,
        )

    async def _obtain_missing(self) -> None:
        for digest, served in self._plan.held().items():
            if digest not in self._models and digest not in self._refused:
                await self._obtain(served)

    async def _obtain(self, served: ServedModel) -> None:
        if self._retry_at.get(served.digest, 0) <= time.monotonic():
            await self._flights.do(served.digest, lambda: self._obtain_now(served))

    async def _obtain_now(self, served: ServedModel) -> None:
        self._loading.add(served.digest)
        await self._exchange()  # first: should the model end this process, it is known which one did
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._thread, self._load, served)
        except (OSError, TrackingUnavailableError) as error:
            self._retry_at[served.digest] = time.monotonic() + RETRY_S
            logger.warning("version %s cannot be fetched, and is tried again: %r", served.version, error)
        except (BadInputError, CorruptArtefactError) as error:
            self._refuse(served, str(error))
        except Exception as error:  # whatever a strange model does: it must not end the replica, nor take traffic
            self._refuse(served, f"{type(error).__name__}: {error}")
        else:
            self._models[served.digest] = model
        finally:
            self._loading.discard(served.digest)

    def _refuse(self, served: ServedModel, reason: str) -> None:
        logger.error("version %s is refused: %s", served.version, reason)
        self._refused[served.digest] = reason

    def _drop_unplanned(self) -> None:
        for digest in self._models.keys() - self._plan.held().keys():
            del self._models[digest]

    def _warm_candidate(self) -> None:
        digest = self._plan.candidate
        if self._warming is not None and self._warming[0] != digest:
            self._warming[1].cancel()
            self._warming = None
        if self._warm is not None and self._warming is None and digest is not None and digest in self._models:
            self._warming = (digest, asyncio.create_task(self._warm_now(digest)))

    async def _warm_now(self, digest: str) -> None:
        assert self._warm is not None
        try:
            await self._warm(self._plan, digest)
        except Exception:  # the first call of a task does it then
            logger.exception("not all recent tasks could be specialized ahead")
