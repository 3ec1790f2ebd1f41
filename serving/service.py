"""What the ingress does, without Ray and without HTTP: find or make the task, ask the backends, put the answer together."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from infra.errors import BadInputError, CorruptArtefactError
from serving.answers import embedding_answer, image_result, since
from serving.limits import ServingLimits
from serving.messages import (
    NOT_LOADED,
    NOT_SPECIALIZED,
    Classified,
    HypernetworkBackend,
    ImageEncoderBackend,
    Refused,
    Specialized,
)
from serving.metrics import IngressMetrics
from serving.problems import ProblemError
from serving.rollout.served_versions import NotLoadedError, ServedVersions
from serving.schemas import (
    ClassifyAnswer,
    EmbeddingAnswer,
    ModelInfo,
    ModelList,
    Parameters,
    TaskCreated,
    TaskInfo,
    TaskList,
    TaskRequest,
    TaskSummary,
    Timings,
)
from serving.single_flight import SingleFlight
from serving.task_cache import TaskCache
from serving.task_record import TaskRecord, is_task_id, specialization_id
from serving.task_requests import TaskRequests
from serving.task_store import TaskStore
from serving.tenant_tasks import TenantTasks

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class ClassifierService:
    """Every call of the interface.  Mistakes of the caller are raised as `ProblemError` or `BadInputError`."""

    def __init__(
        self,
        *,
        versions: ServedVersions,
        hypernetwork: HypernetworkBackend,
        image_encoder: ImageEncoderBackend,
        store: TaskStore,
        limits: ServingLimits,
        metrics: IngressMetrics,
        task_cache_s: float,
        task_ttl_s: float | None,
    ) -> None:
        self.limits = limits
        self.metrics = metrics
        self._hypernetwork = hypernetwork
        self._image_encoder = image_encoder
        self._store = store
        self._requests = TaskRequests(limits)
        self._tasks = TaskCache(ttl_s=task_cache_s)
        self._of_tenants = TenantTasks(store, limits, ttl_s=task_ttl_s, refresh_s=task_cache_s)
        self._flights = SingleFlight()
        self._versions = versions

    # ---- models ------------------------------------------------------------------------------------------------------

    async def models(self) -> ModelList:
        """Every version, the champion first."""
        return await self._within(self.limits.request_timeout_s, self._versions.listed())

    async def health(self) -> ModelInfo:
        """Both deployments answer.

        Raises:
            Exception: one of them does not.
        """
        await asyncio.gather(
            self._within(self.limits.request_timeout_s, self._hypernetwork.describe()),
            self._within(self.limits.request_timeout_s, self._image_encoder.describe()),
        )
        return await self._versions.champion()

    # ---- tasks -------------------------------------------------------------------------------------------------------

    async def create_task(self, request: TaskRequest, *, tenant: str) -> TaskCreated:
        """Make a task ready to classify; the same task again costs next to nothing."""
        started = time.perf_counter()
        record = self._requests.record(request, tenant)

        async def make_ready(model: ModelInfo) -> Specialized | None:
            if self._tasks.is_ready(record.task_id, digest=model.digest):
                self._of_tenants.used(record)
                return None
            key = ("create", record.task_id, model.digest)
            return await self._flights.do(key, lambda: self._make_ready(record, model))

        model, specialized = await self._versions.ask(record, make_ready)
        self.metrics.task(specialize_ms=None if specialized is None else specialized.milliseconds)
        return TaskCreated(
            task_id=record.task_id,
            specialization_id=specialization_id(record.task_id, model.digest),
            model_version=model.version,
            num_labels=len(record.labels),
            cached=specialized is None,
            timings_ms=Timings(total=since(started), specialize=None if specialized is None else specialized.milliseconds),
        )

    async def get_task(self, task: str, *, tenant: str) -> TaskInfo:
        record = await self._find(task, tenant)
        model = await self._versions.of(record)
        return TaskInfo(
            task_id=record.task_id,
            specialization_id=specialization_id(record.task_id, model.digest),
            model_version=model.version,
            labels=record.labels,
            templates=record.templates,
            pinned_version=record.pinned_version,
        )

    async def delete_task(self, task: str, *, tenant: str) -> None:
        record = await self._find(task, tenant)
        self._tasks.forget(record.task_id)
        await self._of_tenants.delete(record)

    async def list_tasks(self, *, tenant: str) -> TaskList:
        """The tasks of a tenant, the one used last first."""
        uses = await self._of_tenants.uses(tenant)
        listed = [TaskSummary(task_id=task, num_labels=use.num_labels, used_at=use.used_at) for task, use in uses.items()]
        return TaskList(
            tasks=tuple(sorted(listed, key=lambda task: task.used_at, reverse=True)),
            num_labels=sum(task.num_labels for task in listed),
            max_tasks=self.limits.max_tasks_per_tenant,
            max_labels=self.limits.max_labels_per_tenant,
        )

    async def export(self, task: str, *, tenant: str) -> bytes:
        """The edge package of a task, as a zip file."""
        record = await self._find(task, tenant)

        async def export(model: ModelInfo) -> bytes | Refused:
            return await self._flights.do(
                ("export", record.task_id, model.digest),
                lambda: self._within(self.limits.specialize_timeout_s, self._hypernetwork.export(record, digest=model.digest)),
            )

        _, package = await self._versions.ask(record, export)
        if isinstance(package, Refused):
            raise ProblemError.of(package)
        return package

    # ---- pictures and texts ------------------------------------------------------------------------------------------

    async def classify(
        self, task: str, images: Sequence[bytes], *, tenant: str, top_k: int, parameters: Parameters = "specialized"
    ) -> ClassifyAnswer:
        """Scores of each picture; an unreadable picture fails alone, unless there is no other."""
        answer = await self.classify_each(task, images, tenant=tenant, top_k=top_k, parameters=parameters)
        problems = [result.problem for result in answer.results if result.problem is not None]
        if len(problems) == len(answer.results):
            raise ProblemError.of_problem(problems[0])
        return answer

    async def classify_each(
        self, task: str, images: Sequence[bytes], *, tenant: str, top_k: int, parameters: Parameters
    ) -> ClassifyAnswer:
        """The same where every picture may fail alone."""
        started = time.perf_counter()
        self._check_images(images)
        record = await self._find(task, tenant)
        milliseconds = None

        async def ask(model: ModelInfo) -> list[Classified | Refused] | Refused:
            nonlocal milliseconds
            results = await self._ask_encoder(record, model, images, parameters=parameters, top_k=top_k)
            if results == NOT_SPECIALIZED:  # the champion has changed, or what was stored has gone
                milliseconds = (await self._specialize(record, model)).milliseconds
                results = await self._ask_encoder(record, model, images, parameters=parameters, top_k=top_k)
            if results == NOT_SPECIALIZED:
                results = Refused(503, "not_ready", NOT_SPECIALIZED.detail)
            return results

        model, asked = await self._versions.ask(record, ask)
        results = self._answered(asked)
        self.metrics.pictures(results)
        return ClassifyAnswer(
            task_id=record.task_id,
            specialization_id=specialization_id(record.task_id, model.digest),
            model_version=model.version,
            parameters=parameters,
            results=tuple(image_result(result, record, model, parameters) for result in results),
            timings_ms=Timings(total=since(started), specialize=milliseconds),
        )

    async def embed_images(self, images: Sequence[bytes], *, tenant: str) -> EmbeddingAnswer:
        """Neutral features of each picture."""
        started = time.perf_counter()
        self._check_images(images)
        model, results = await self._versions.ask(
            None,
            lambda model: self._within(
                self.limits.request_timeout_s, self._image_encoder.embed(images, digest=model.digest, tenant=tenant)
            ),
        )
        return embedding_answer(model, self._answered(results), started)

    async def embed_texts(self, texts: Sequence[str]) -> EmbeddingAnswer:
        started = time.perf_counter()
        if len(texts) > self.limits.max_texts:
            raise BadInputError(f"{len(texts):,} texts; at most {self.limits.max_texts:,} are allowed in one call")
        model, results = await self._versions.ask(
            None,
            lambda model: self._within(
                self.limits.request_timeout_s, self._hypernetwork.embed_texts(texts, digest=model.digest)
            ),
        )
        return embedding_answer(model, self._answered(results), started)

    # ---- parts -------------------------------------------------------------------------------------------------------

    async def _find(self, task: str, tenant: str) -> TaskRecord:
        """A task of this tenant; one of another tenant is as unknown as one that never was."""
        record = self._tasks.get(task)
        if record is not None and record.tenant != tenant:
            record = None
        elif record is None and is_task_id(task):
            record = await asyncio.to_thread(self._stored, task, tenant)
            if record is not None:
                self._of_tenants.used(record)
        if record is None:
            raise ProblemError(404, "unknown_task", "there is no such task; create it with POST /v1/tasks")
        self._tasks.put(record)
        return record

    def _stored(self, task: str, tenant: str) -> TaskRecord | None:
        try:
            return self._store.get(task, tenant=tenant)
        except CorruptArtefactError as error:  # creating the task again stores it again
            logger.error("a task counts as unknown: %s", error)
            return None

    async def _make_ready(self, record: TaskRecord, model: ModelInfo) -> Specialized | None:
        """Store the task, and its encoder unless that is there; None when it was."""
        specialization = specialization_id(record.task_id, model.digest)
        made = None
        async with self._of_tenants.place(record):
            if not await asyncio.to_thread(self._store.has_encoder, record.task_id, specialization):
                made = await self._specialize(record, model)
        self._tasks.put_ready(record, digest=model.digest)
        return made

    async def _specialize(self, record: TaskRecord, model: ModelInfo) -> Specialized:
        made = await self._flights.do(
            ("specialize", record.task_id, model.digest),
            lambda: self._within(self.limits.specialize_timeout_s, self._hypernetwork.specialize(record, digest=model.digest)),
        )
        if isinstance(made, Refused):
            raise ProblemError.of(made)
        return made

    async def _ask_encoder(
        self, record: TaskRecord, model: ModelInfo, images: Sequence[bytes], *, parameters: Parameters, top_k: int
    ) -> list[Classified | Refused] | Refused:
        call = self._image_encoder.classify(
            images,
            task_id=record.task_id,
            specialization_id=specialization_id(record.task_id, model.digest),
            digest=model.digest,
            parameters=parameters,
            top_k=top_k,
            tenant=record.tenant,
        )
        return await self._within(self.limits.request_timeout_s, call)

    def _check_images(self, images: Sequence[bytes]) -> None:
        if not images:
            raise ProblemError(422, "no_image", "there is no picture in the request")
        if len(images) > self.limits.max_images:
            raise ProblemError(
                422, "too_many_images", f"{len(images)} pictures; at most {self.limits.max_images} are allowed in one call"
            )

    def _answered(self, results: Sequence[Result] | Refused) -> Sequence[Result]:
        if isinstance(results, Refused):
            raise ProblemError.of(results, retry_after_s=self.limits.retry_after_s)
        return results

    async def _within(self, seconds: float, call: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(seconds):
                answer = await call
        except TimeoutError as error:
            raise ProblemError(
                503,
                "timeout",
                f"no answer within {seconds:g} s; try again",
                headers={"retry-after": str(self.limits.retry_after_s)},
            ) from error
        if isinstance(answer, Refused) and answer == NOT_LOADED:
            raise NotLoadedError
        return answer
