"""What OpenAPI says of the interface beyond what FastAPI finds out: bodies, queries, problems and keys."""

from collections.abc import Mapping, Set
from typing import Any, get_args

from serving.problems import MEDIA_TYPE
from serving.schemas import Parameters, WireModel

_PARAMETERS: Mapping[str, Any] = {"type": "string", "enum": list(get_args(Parameters)), "default": "specialized"}
CLASSIFY_QUERY: Mapping[str, Any] = {
    "parameters": [
        {
            "name": "top_k",
            "in": "query",
            "description": "Labels in the answer, best first; 5 when absent.",
            "schema": {"type": "string", "pattern": "^[0-9]+$"},
        },
        {
            "name": "parameters",
            "in": "query",
            "description": "`neutral` scores without the generated parameters, to compare.",
            "schema": _PARAMETERS,
        },
    ]
}
"""What the hot call reads from its query, as OpenAPI shows it."""
LINES = "A `StreamLine` for each picture as it becomes ready, then a `StreamEnd`."
_WHY = {
    400: "The body cannot be read",
    401: "No API key, or an unknown one; where the service has keys",
    403: "Not allowed: from another site, under another host name, or more tasks than a tenant may have",
    404: "No such task; with API keys, no metrics",
    408: "The body did not arrive in time",
    409: "The model version that the task is pinned to is not served",
    413: "Body or picture too large",
    415: "Not a media type or picture format that is read",
    422: "What was asked for cannot be done",
    429: "Too many requests; wait as `Retry-After` says",
    500: "The service failed; its log has the reason",
    503: "Not ready, or no answer in time",
}
_ALWAYS = (400, 401, 403, 408, 413, 415, 422, 429, 500, 503)

Responses = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """Answers of these statuses as problem documents."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"content": content, "description": _WHY[status]} for status in statuses}


def refusals(*more: int) -> Responses:
    """What every call that needs a key may be refused with, and what this one may be."""
    return problems(*sorted({*_ALWAYS, *more}))


def answered_as(media_type: str, **schema: str) -> Responses:
    """A 200 that is not JSON, or not only."""
    return {200: {"content": {media_type: {"schema": {"type": "string", **schema}}}}}


def describe_keys(document: dict[str, Any], *, open_paths: Set[str]) -> None:
    """Add to a document how a key is sent, and which calls need none."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    document["security"] = [{"bearer": []}, {"x-api-key": []}]
    for path in open_paths & document["paths"].keys():
        for operation in document["paths"][path].values():
            operation["security"] = []


def json_body(model: type[WireModel]) -> dict[str, Any]:
    """How OpenAPI shows a body that `read_json` reads."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def form_body(*, texts: dict[str, str], raw_image: bool) -> dict[str, Any]:
    """How OpenAPI shows a form of pictures, with text fields or lists of them, and a raw picture in its place."""
    binary = {"type": "string", "format": "binary"}
    kinds: dict[str, Any] = {
        "many": {"type": "array", "items": {"type": "string"}},
        "one": {"type": "string"},
        "parameters": _PARAMETERS,
    }
    properties = {name: kinds[kind] for name, kind in texts.items()} | {"images": {"type": "array", "items": binary}}
    required = [name for name in properties if name in ("labels", "images")]
    content: dict[str, Any] = {
        "multipart/form-data": {"schema": {"type": "object", "properties": properties, "required": required}}
    }
    if raw_image:
        content |= {kind: {"schema": binary} for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")}
    return {"requestBody": {"required": True, "content": content}}
