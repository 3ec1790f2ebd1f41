"""What Ray Serve's own proxy sees of a request's headers.

It decodes three of them as UTF-8 before the service has the request, and answers 500 and no problem document when one is not.
Two of them would also let a client choose its replica.  `proxy_gate.middlewares` puts this before it.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

REQUEST_ID = b"x-request-id"
_CHOOSE_REPLICA = (b"serve_multiplexed_model_id", b"x_session_id")
"""With underscores, as Serve compares them."""


class CleanHeaders:
    """Leaves out what the proxy cannot read and what nobody should send; then it makes a request id as if there were none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            kept = [(name, value) for name, value in scope["headers"] if _is_fit(name, value)]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


def _is_fit(name: bytes, value: bytes) -> bool:
    if name.lower() == REQUEST_ID:
        return value.isascii()
    return name.lower().replace(b"-", b"_") not in _CHOOSE_REPLICA
