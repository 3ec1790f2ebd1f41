"""Who calls: the middleware that finds the tenant, or turns the caller away.  Plain ASGI, before `Admission`."""

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.problems import ProblemError, problem_response
from serving.rate import Access
from serving.tenants import DEFAULT_TENANT

# a page of another site may have its own name point to this machine, and is then of the same site as the service; its browser
# sends that name
_LOCAL_HOST = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d*)?", re.IGNORECASE | re.ASCII)


class Authentication:
    """Finds the tenant by its key.  Without keys everybody is the default tenant, perhaps only on this machine."""

    def __init__(self, app: ASGIApp, *, access: Access, open_paths: frozenset[str]) -> None:
        """Args: open_paths: what needs no key, as it shows nothing of anybody."""
        self._app = app
        self._access = access
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keys = self._access.keys
        if scope["type"] != "http" or (keys is not None and scope["path"] in self._open_paths):
            await self._app(scope, receive, send)
            return
        tenant: str | None = DEFAULT_TENANT
        if self._access.local_only and not _LOCAL_HOST.fullmatch(host := Headers(scope=scope).get("host", "")):
            await problem_response(_foreign(host), scope)(scope, receive, send)
            return
        if keys is not None:
            key = _key(Headers(scope=scope))
            tenant = keys.tenant(key)
            if tenant is None:
                await problem_response(_unauthorized(given=bool(key)), scope)(scope, receive, send)
                return
        assert tenant is not None
        scope["state"] |= {"tenant": tenant, "account": self._access.accounts[tenant]}
        await self._app(scope, receive, send)


def _key(headers: Headers) -> bytes:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":  # a proxy in front may have its own use for the header
        key = headers.get("x-api-key", "")
    return key.strip().encode("latin-1", errors="replace")


def _foreign(host: str) -> ProblemError:
    detail = (
        f"this service has no API keys and serves this machine only, as localhost or 127.0.0.1, not as {host[:60]!r}; "
        "give it keys (`hyperclip serve-key`), or say allow_anonymous: true"
    )
    return ProblemError(403, "foreign_host", detail)


def _unauthorized(*, given: bool) -> ProblemError:
    detail = "this key is not known" if given else "send your API key, as `Authorization: Bearer KEY` or `x-api-key: KEY`"
    challenge = 'Bearer realm="hyperclip"' + (', error="invalid_token"' if given else "")
    return ProblemError(401, "unauthorized", detail, headers={"www-authenticate": challenge})
