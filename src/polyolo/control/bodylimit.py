"""Bounds what a request may make the control API hold in memory."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyolo.errors import TooLargeError

LIMIT_BYTES = 1 << 20
"""Bytes of a JSON body; the largest sensible one, a list of scopes, has a few hundred."""


class BodyLimit:
    """Refuses bodies above the limit, except where a route streams and bounds its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path: str = scope.get("path", "")
        streams = path.endswith("/versions") or ("/uploads/" in path and scope["method"] == "PATCH")
        streams = streams or ("/golden/" in path and scope["method"] == "PUT")
        if streams or path.startswith("/internal/"):
            await self._app(scope, receive, send)
            return
        detail = f"the body is larger than the {LIMIT_BYTES:,} bytes allowed here"
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > LIMIT_BYTES:
            raise TooLargeError(detail)
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > LIMIT_BYTES:  # an error of this kind FastAPI passes on; others become 400
                raise HTTPException(413, detail)
            return message

        await self._app(scope, counted, send)
