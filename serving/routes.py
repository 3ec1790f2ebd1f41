"""The HTTP interface as a plain FastAPI application over a `ClassifierService`: no Ray in here."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from serving.authentication import Authentication
from serving.classify_stream import NDJSON, ClassifyStream, wants_lines
from serving.metrics import CONTENT_TYPE_LATEST
from serving.middleware import Admission, RequestContext
from serving.openapi import (
    CLASSIFY_QUERY,
    LINES,
    answered_as,
    describe_keys,
    form_body,
    json_body,
    problems,
    refusals,
)
from serving.problems import ProblemError, install_problem_handlers
from serving.rate import Access
from serving.requests import (
    Form,
    charge_images,
    check_query,
    parameters_of,
    read_form,
    read_images,
    read_json,
    single,
    top_k_of,
)
from serving.schemas import (
    ClassifyAnswer,
    EmbeddingAnswer,
    Health,
    ModelList,
    Parameters,
    TaskCreated,
    TaskInfo,
    TaskList,
    TaskRequest,
    TextRequest,
)
from serving.service import ClassifierService
from serving.tenants import tenant_of

WEB = Path(__file__).parent / "web"
SCRIPTS = ("answers.js", "app.js", "names.js", "page.js", "pictures.js", "service.js")
PAGES = {"/": "index.html", **{f"/{name}": name for name in ("icon.svg", "style.css", *SCRIPTS)}}

OPEN_PATHS = frozenset((*PAGES, "/openapi.json", "/healthz", "/metrics"))
"""What needs no key."""

CLASSIFY_PATH = "/v1/tasks/{task_id}/classify"
AT_ONCE = {"labels": "many", "templates": "many", "pinned_version": "one", "top_k": "one", "parameters": "parameters"}
"""Text fields of `/v1/classify`, and what OpenAPI says of their values."""


def create_http_app(service: ClassifierService, access: Access | None = None) -> FastAPI:
    """Build the application; every error it gives is a problem document.

    Args:
        access: who may call, and how much; without it everybody is the default tenant.
    """
    limits = service.limits
    access = access or Access((), limits)
    app = FastAPI(
        title="HyperCLIP",
        version="1",
        docs_url=None,  # its own documentation pages load scripts from elsewhere
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # spans are made in `RequestContext`
        dependencies=[Depends(_no_query)],
    )
    install_problem_handlers(app)
    app.add_middleware(Admission, limits=limits, metrics=service.metrics)
    app.add_middleware(Authentication, access=access, open_paths=OPEN_PATHS)
    app.add_middleware(RequestContext, metrics=service.metrics)  # the last one is the outermost

    @app.post("/v1/tasks", tags=["tasks"], responses=refusals(409), openapi_extra=json_body(TaskRequest))
    async def create_task(request: Request) -> TaskCreated:
        """Name the classes; the same names again give the same task."""
        return await service.create_task(await read_json(request, TaskRequest, limits), tenant=tenant_of(request))

    @app.head("/v1/tasks", include_in_schema=False)
    @app.get("/v1/tasks", tags=["tasks"], responses=refusals())
    async def list_tasks(request: Request) -> TaskList:
        """Your tasks, the one used last first, and how many there may be."""
        return await service.list_tasks(tenant=tenant_of(request))

    @app.head("/v1/tasks/{task_id}", include_in_schema=False)
    @app.get("/v1/tasks/{task_id}", tags=["tasks"], responses=refusals(404, 409))
    async def get_task(request: Request, task_id: str) -> TaskInfo:
        """What a task is."""
        return await service.get_task(task_id, tenant=tenant_of(request))

    @app.delete("/v1/tasks/{task_id}", tags=["tasks"], status_code=204, responses=refusals(404))
    async def delete_task(request: Request, task_id: str) -> Response:
        """Forget a task and everything made for it."""
        await service.delete_task(task_id, tenant=tenant_of(request))
        return Response(status_code=204)

    @app.get(
        "/v1/tasks/{task_id}/export",
        tags=["tasks"],
        responses=refusals(404, 409) | answered_as("application/zip", format="binary"),
        response_class=Response,
    )
    async def export_task(request: Request, task_id: str) -> Response:
        """The specialized encoder as an ONNX package for a device (zip)."""
        package = await service.export(task_id, tenant=tenant_of(request))
        name = f'attachment; filename="hyperclip-{task_id[:12]}.zip"'
        return Response(package, media_type="application/zip", headers={"content-disposition": name})

    @app.post(
        CLASSIFY_PATH,
        tags=["pictures"],
        response_model=ClassifyAnswer,
        responses=refusals(404, 409) | answered_as(NDJSON, description=LINES),
        openapi_extra={**form_body(texts={}, raw_image=True), **CLASSIFY_QUERY},
    )
    async def classify(request: Request, task_id: str) -> Response:
        """Classify one picture (raw bytes) or several (a form with `images`).

        With `Accept: application/x-ndjson` many more, each answered in a line of its own as soon as it is ready.
        """
        check_query(request, known=("top_k", "parameters"))
        query, tenant = request.query_params, tenant_of(request)
        number, parameters = top_k_of(query.get("top_k"), limits), parameters_of(query.get("parameters"))
        if wants_lines(request.headers.get("accept", "")):
            await service.get_task(task_id, tenant=tenant)  # an unknown one is a 404 and no stream

            async def ask(some: Sequence[bytes]) -> ClassifyAnswer:
                charge_images(request, len(some), limits)
                return await service.classify_each(task_id, some, tenant=tenant, top_k=number, parameters=parameters)

            content_type = request.headers.get("content-type", "")
            return ClassifyStream(ask, content_type=content_type, limits=limits, metrics=service.metrics)
        images = await read_images(request, limits)
        answer = await service.classify(task_id, images, tenant=tenant, top_k=number, parameters=parameters)
        return Response(answer.model_dump_json(), media_type="application/json")

    _put_first(app, CLASSIFY_PATH, classify)

    @app.post(
        "/v1/classify",
        tags=["pictures"],
        response_model=ClassifyAnswer,
        responses=refusals(409) | answered_as(NDJSON, description=LINES),
        openapi_extra=form_body(texts=AT_ONCE, raw_image=False),
    )
    async def classify_at_once(request: Request) -> Response | ClassifyAnswer:
        """Labels and pictures in one form: repeat `labels` and `images`.

        With `Accept: application/x-ndjson` many more pictures, after the labels, each answered in a line of its own.
        """
        tenant = tenant_of(request)

        async def begin(form: Form) -> tuple[str, int, Parameters]:
            """The task, how many labels an answer should hold, and under which parameters."""
            number, parameters = top_k_of(single(form, "top_k"), limits), parameters_of(single(form, "parameters"))
            templates = form.fields.get("templates")
            asked = TaskRequest(
                labels=tuple(form.fields.get("labels", ())),
                templates=None if templates is None else tuple(templates),
                pinned_version=single(form, "pinned_version"),
            )
            return (await service.create_task(asked, tenant=tenant)).task_id, number, parameters

        if wants_lines(request.headers.get("accept", "")):
            return _stream_at_once(request, service, begin, texts=tuple(AT_ONCE))
        form = await read_form(request, limits, allowed=tuple(AT_ONCE))
        task_id, number, parameters = await begin(form)
        return await service.classify(task_id, form.images, tenant=tenant, top_k=number, parameters=parameters)

    @app.post("/v1/embed/image", tags=["features"], responses=refusals(), openapi_extra=form_body(texts={}, raw_image=True))
    async def embed_image(request: Request) -> EmbeddingAnswer:
        """Neutral features of pictures: they depend on no labels, so they can be stored and compared."""
        return await service.embed_images(await read_images(request, limits), tenant=tenant_of(request))

    @app.post("/v1/embed/text", tags=["features"], responses=refusals(), openapi_extra=json_body(TextRequest))
    async def embed_text(request: Request) -> EmbeddingAnswer:
        """Features of texts, comparable with those of pictures."""
        return await service.embed_texts((await read_json(request, TextRequest, limits)).texts)

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models", tags=["service"], responses=refusals())
    async def models() -> ModelList:
        """What is being served: models ready for use, and how far each version is."""
        return await service.models()

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", tags=["service"], responses=problems(403, 500, 503))
    async def healthz() -> Health:
        """Whether both deployments answer."""
        return Health(status="ok", model_version=(await service.health()).version)

    @app.head("/metrics", include_in_schema=False)
    @app.get(
        "/metrics", tags=["service"], responses=problems(403, 404, 500) | answered_as("text/plain"), response_class=Response
    )
    async def metrics() -> Response:
        """Counters of the replica that answers, in Prometheus' text form; only where there are no API keys."""
        if access.keys is not None:  # they name the tenants
            raise ProblemError(404, "not_found", "with API keys, metrics are on Ray's own port only")
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    for path, name in PAGES.items():
        _add_page(app, path, WEB / name)
    if access.keys is not None:
        describe_keys(app.openapi(), open_paths=OPEN_PATHS)
    return app


async def _no_query(request: Request) -> None:
    """Of all calls but the hot one, which FastAPI does not see."""
    path = request.scope["path"]
    if path.startswith("/v1/"):  # the page's own address may carry what others put there
        check_query(request, fields=AT_ONCE if path == "/v1/classify" else ())


def _stream_at_once(
    request: Request,
    service: ClassifierService,
    begin: Callable[[Form], Awaitable[tuple[str, int, Parameters]]],
    *,
    texts: tuple[str, ...],
) -> ClassifyStream:
    """A stream whose task is made of the text fields before its first picture."""
    limits, tenant = service.limits, tenant_of(request)
    asked: tuple[str, int, Parameters] = ("", 0, "specialized")

    async def begin_with(fields: Mapping[str, list[str]]) -> None:
        nonlocal asked
        asked = await begin(Form(dict(fields), []))

    async def ask(some: Sequence[bytes]) -> ClassifyAnswer:
        charge_images(request, len(some), limits)
        task_id, number, parameters = asked
        return await service.classify_each(task_id, some, tenant=tenant, top_k=number, parameters=parameters)

    content_type = request.headers.get("content-type", "")
    return ClassifyStream(ask, content_type=content_type, limits=limits, metrics=service.metrics, begin=begin_with, texts=texts)


def _put_first(app: FastAPI, path: str, answer: Callable[[Request, str], Awaitable[Response]]) -> None:
    """Answer the hot call without FastAPI's own reading of a request, which takes longer than all the rest of the ingress.

    The route of FastAPI stays for what OpenAPI says of it.
    """

    async def endpoint(request: Request) -> Response:
        request.scope["route"] = route  # as FastAPI does it, for the metrics
        return await answer(request, request.path_params["task_id"])

    route = Route(path, endpoint, methods=["POST"])
    app.router.routes.insert(0, route)


def _add_page(app: FastAPI, path: str, file: Path) -> None:
    async def page() -> Response:
        return FileResponse(file, headers={"cache-control": "no-cache"})

    app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)
