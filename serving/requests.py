"""Reading request bodies: JSON, a raw picture, or a multipart form."""

import asyncio
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from infra.config import did_you_mean
from serving.limits import ServingLimits
from serving.problems import ProblemError, invalid_body
from serving.schemas import Parameters, WireModel

Body = TypeVar("Body", bound=WireModel)

DEFAULT_TOP_K = 5
PARSED_AT_ONCE = 64 * 2**10
"""Bytes of JSON that take less time than changing threads does."""
MAX_FIELD_CHARACTERS, MAX_BYTES_A_CHARACTER = 1000, 4
"""Of a text field in a form; a label has less."""

CUT_OFF = "the multipart form ends before its last boundary"


@dataclass(frozen=True)
class Form:
    """A multipart form: values by field, and the pictures."""

    fields: dict[str, list[str]]
    images: list[bytes]


async def read_json(request: Request, model: type[Body], limits: ServingLimits) -> Body:
    """A JSON body of a given form.

    Raises:
        ProblemError: 415 another media type, 413 too long, 400 not JSON, 422 JSON of another form.
    """
    if media_type(request) != "application/json":
        raise ProblemError(415, "unsupported_media_type", f"send application/json, not {media_type(request) or 'nothing'}")
    body = await _body(request, most=limits.max_json_bytes)
    try:
        if len(body) <= PARSED_AT_ONCE:
            return model.model_validate_json(body)
        return await asyncio.to_thread(model.model_validate_json, body)  # the event loop has others to answer
    except ValidationError as error:
        raise invalid_body(error, known=model.model_fields) from error


async def _body(request: Request, *, most: int) -> bytes:
    """Raises ProblemError (413) as soon as there is more."""
    parts: list[bytes] = []
    size = 0
    length = request.headers.get("content-length", "")
    async for part in request.stream():
        size += len(part)
        if size > most or (length.isdecimal() and int(length[:20]) > most):
            detail = f"the JSON body is longer than the {most:,} bytes allowed"
            raise ProblemError(413, "body_too_long", detail, headers={"connection": "close"})
        parts.append(part)
    return b"".join(parts)


async def read_images(request: Request, limits: ServingLimits) -> list[bytes]:
    """The pictures of a call: the whole body, or the `images` files of a form.

    Raises:
        ProblemError: 415 a media type that is neither, 400 a broken form, 422 a form with something else in it.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        return (await read_form(request, limits, allowed=())).images
    if kind.startswith("image/") or kind in ("application/octet-stream", ""):
        body = await request.body()
        images = [body] if body else []
        charge_images(request, len(images), limits)
        return images
    raise ProblemError(415, "unsupported_media_type", f"send image bytes or multipart/form-data, not {kind}")


async def read_form(request: Request, limits: ServingLimits, *, allowed: tuple[str, ...]) -> Form:
    """A multipart form of pictures under `images`, and text fields under the allowed names.

    Raises:
        ProblemError: 415 no form, 400 a broken one, 422 an unknown field or a picture that is no file.
    """
    if media_type(request) != "multipart/form-data":
        raise ProblemError(415, "unsupported_media_type", f"send multipart/form-data, not {media_type(request) or 'nothing'}")
    # one more than allowed, so that the usual check refuses it and says by how much
    max_fields = limits.max_labels + limits.max_templates + 8
    fields: dict[str, list[str]] = {}
    images: list[bytes] = []
    max_part_size = MAX_BYTES_A_CHARACTER * MAX_FIELD_CHARACTERS
    try:
        async with aclosing(request.stream()) as stream:
            form = await _WholeForms(
                request.headers, stream, max_files=limits.max_images + 1, max_fields=max_fields, max_part_size=max_part_size
            ).parse()
        try:
            for name, value in form.multi_items():
                if name == "images" and isinstance(value, UploadFile):
                    images.append(await value.read())
                elif name in allowed and isinstance(value, str):
                    value.encode()  # some of the charsets that a form may name give lone surrogates, which no text may hold
                    fields.setdefault(name, []).append(value)
                else:
                    raise unknown_field(name, allowed, is_file=isinstance(value, UploadFile))
        finally:
            await form.close()
    except (MultiPartException, KeyError, UnicodeError) as error:
        unusable = f"a part of it has no usable header or text ({error!r})"
        detail = error.message if isinstance(error, MultiPartException) else unusable
        if detail.startswith("Too many files"):  # it names what we gave it, one more than allowed
            most = f"more pictures than the {limits.max_images} that are allowed in one call"
            raise ProblemError(422, "too_many_images", most) from error
        raise ProblemError(400, "malformed_form", f"the multipart form cannot be read: {detail}") from error
    charge_images(request, len(images), limits)
    return Form(fields, images)


def unknown_field(name: str, texts: Collection[str], *, is_file: bool) -> ProblemError:
    """What to say of a part that a form may not hold: pictures are files under `images`, texts have the other names."""
    if name == "images":
        detail = "the form holds 'images' as a text; send it as a file: -F images=@photo.jpg"
    elif is_file and name in texts:
        detail = f"the form holds {name!r} as a file; send it as a text"
    else:
        names = ", ".join((*texts, "images (files)"))
        near = did_you_mean(name[:60], (*texts, "images"))
        detail = f"the form holds {name[:60]!r}; it may hold {names}{near}"
    return ProblemError(422, "unknown_field", detail)


class _WholeForms(MultiPartParser):
    """Starlette's parser takes a form that was cut off for a whole one, without the part that was cut."""

    _ended = False

    def on_end(self) -> None:
        self._ended = True

    async def parse(self) -> FormData:
        """Raises ProblemError: the last boundary is missing."""
        form = await super().parse()
        if not self._ended:
            await form.close()
            raise ProblemError(400, "malformed_form", CUT_OFF)
        return form


def check_query(request: Request, *, known: Collection[str] = (), fields: Collection[str] = ()) -> None:
    """That a query holds what the call reads, once, and nothing else: what is not read would change nothing, unseen.

    Args: fields, names that the form of this call takes, to say so.

    Raises:
        ProblemError: another name, or one given twice.
    """
    if not request.scope["query_string"]:
        return
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name in known:
            if given.count(name) > 1:
                raise ProblemError(422, "repeated_parameter", f"the query parameter {name!r} is given more than once")
            continue
        if name in fields:
            hint = "it is a field of the form here"
        else:
            hint = f"this call takes {' and '.join(known) or 'none'}{did_you_mean(name[:60], known)}"
        raise ProblemError(422, "unknown_parameter", f"there is no query parameter {name[:60]!r}; {hint}")


def charge_images(request: Request, count: int, limits: ServingLimits) -> None:
    """Put pictures on the account of the tenant, before anything is done with them.

    Raises:
        ProblemError: 429 the tenant has had its pictures for now.
    """
    state = request.scope["state"]
    metrics, account = state["metrics"], state["account"]
    if not count:
        return
    if wait := account.images_wait_s(count):
        headers = {"retry-after": str(max(wait, limits.retry_after_s))}
        rate = account.images.rate
        detail = f"more than the {rate:g} pictures a second that this tenant may send; wait and try again"
        raise ProblemError(429, "images_limited", detail, headers=headers)
    metrics.tenant_images.labels(account.name).inc(count)


def single(form: Form, name: str) -> str | None:
    """The value of a field that may be there once.

    Raises:
        ProblemError: it is there more often.
    """
    values = form.fields.get(name, [])
    if len(values) > 1:
        raise ProblemError(422, "repeated_field", f"the form holds {name!r} {len(values)} times")
    return values[0] if values else None


def top_k_of(text: str | None, limits: ServingLimits) -> int:
    """How many labels an answer should hold.

    Raises:
        ProblemError: not a whole number in the allowed range.
    """
    if text is None:
        return min(DEFAULT_TOP_K, limits.max_top_k)
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= limits.max_top_k):
        raise ProblemError(422, "bad_top_k", f"top_k must be a whole number from 1 to {limits.max_top_k}, not {text[:20]!r}")
    return int(text)


def parameters_of(text: str | None) -> Parameters:
    """Which parameters to encode a picture under.

    Raises:
        ProblemError: there are none of that name.
    """
    if text is None or text == "specialized":
        return "specialized"
    if text != "neutral":
        raise ProblemError(422, "invalid_request", f"parameters must be 'specialized' or 'neutral', not {text[:20]!r}")
    return "neutral"


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
