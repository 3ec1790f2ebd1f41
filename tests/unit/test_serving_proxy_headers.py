"""What is taken out of a request's headers before Ray Serve's proxy decodes them."""

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from serving.proxy_headers import CleanHeaders

Headers = list[tuple[bytes, bytes]]


def seen_by_the_proxy(headers: Headers) -> Headers:
    seen: list[Headers] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])

    async def nothing(*_: Any) -> Any:
        return {}

    asyncio.run(CleanHeaders(proxy)({"type": "http", "headers": headers}, nothing, nothing))
    return seen[0]


@pytest.mark.parametrize(
    "header",
    [
        (b"x-request-id", b"\xff\xfe"),
        (b"serve_multiplexed_model_id", b"\xff"),
        (b"serve-multiplexed-model-id", b"mine"),
        (b"x-session-id", b"mine"),
    ],
)
def test_what_the_proxy_cannot_read_or_should_not_follow_is_left_out(header: tuple[bytes, bytes]) -> None:
    others = [(b"x-request-id", b"mine-1"), (b"authorization", b"Bearer \xff")]
    assert seen_by_the_proxy([*others, header]) == others
