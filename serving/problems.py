"""Errors as `application/problem+json` (RFC 9457)."""

import logging
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from infra.config import did_you_mean
from infra.errors import BadInputError, HyperClipError
from serving.messages import Refused
from serving.schemas import Problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20


class ProblemError(Exception):
    """An error that is told to the client."""

    def __init__(
        self,
        status: int,
        reason: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.problem = make_problem(status, reason, detail)
        self.headers = dict(headers or {})
        self.errors = list(errors)

    @classmethod
    def of_problem(cls, problem: Problem) -> "ProblemError":
        return cls(problem.status, problem.type.rpartition(":")[2], problem.detail)

    @classmethod
    def of(cls, refused: Refused, *, retry_after_s: int | None = None) -> "ProblemError":
        """With `Retry-After` where trying again may help."""
        headers = {"retry-after": str(retry_after_s)} if retry_after_s and refused.status in (429, 503) else {}
        return cls(refused.status, refused.reason, refused.detail, headers=headers)


def make_problem(status: int, reason: str, detail: str) -> Problem:
    return Problem(type=f"urn:hyperclip:problem:{reason}", title=HTTPStatus(status).phrase, status=status, detail=detail)


def problem_response(error: ProblemError, scope: MutableMapping[str, Any] | None = None) -> Response:
    """The answer to a client; with the request's scope, its log line gets the reason."""
    if scope is not None:
        scope.setdefault("state", {})["problem"] = error.problem.type.rpartition(":")[2]
    body: dict[str, Any] = error.problem.model_dump()
    if error.errors:
        body["errors"] = error.errors
    return JSONResponse(body, status_code=error.problem.status, headers=error.headers, media_type=MEDIA_TYPE)


def invalid_body(error: ValidationError, *, known: Iterable[str]) -> ProblemError:
    """What is wrong with a JSON body that has known fields, place by place; what was sent is not repeated."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(found["type"] == "json_invalid" for found in problems):
        return ProblemError(400, "malformed_json", f"the body is not valid JSON: {problems[0]['msg']}")
    places = [{"place": ".".join(map(str, found["loc"])), "message": _message(found, known)} for found in problems[:MAX_ERRORS]]
    listed = "; ".join(f"{found['place'] or 'the body'}: {found['message']}" for found in places[:3])
    first = f"{len(problems)} problems, the first three: " if len(problems) > 3 else ""
    return ProblemError(422, "invalid_request", first + listed, errors=places)


def _message(found: ErrorDetails, known: Iterable[str]) -> str:
    if found["type"] != "extra_forbidden":
        return found["msg"]
    return "there is no such field" + did_you_mean(str(found["loc"][-1])[:60], known)


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error of an application a problem document."""

    @app.exception_handler(ProblemError)
    async def _problem(request: Request, error: ProblemError) -> Response:
        return problem_response(error, request.scope)

    @app.exception_handler(BadInputError)
    async def _bad_input(request: Request, error: BadInputError) -> Response:
        return problem_response(ProblemError(422, "invalid_request", str(error)), request.scope)

    @app.exception_handler(HyperClipError)
    async def _ours(request: Request, error: HyperClipError) -> Response:
        logger.error("request failed: %s", error)
        detail = "what is stored for this request cannot be used"
        return problem_response(ProblemError(500, "stored_data", detail), request.scope)

    @app.exception_handler(RequestValidationError)
    async def _parameters(request: Request, error: RequestValidationError) -> Response:
        places = [
            {"place": ".".join(map(str, found["loc"])), "message": str(found["msg"])} for found in error.errors()[:MAX_ERRORS]
        ]
        listed = "; ".join(f"{found['place']}: {found['message']}" for found in places[:3])
        return problem_response(ProblemError(422, "invalid_request", listed, errors=places), request.scope)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        reason = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        path, detail, headers = request.scope["path"][:100], str(error.detail), dict(error.headers or {})
        if error.status_code == 404:
            detail = f"there is nothing at {path!r}; /openapi.json has the calls that there are"
        if error.status_code == 405:
            allowed = _allowed(app, request)
            detail = f"{path!r} takes {allowed}, not {request.method[:20]}; /openapi.json has the calls that there are"
            headers = {"allow": allowed}
        return problem_response(ProblemError(error.status_code, reason, detail, headers=headers), request.scope)


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods of a path, of all routes that it has: Starlette names those of the first."""
    matching = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in matching for method in getattr(route, "methods", None) or ()}))
