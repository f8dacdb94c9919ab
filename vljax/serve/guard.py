"""What every request passes first: sizes, patience with slow clients, and who may ask."""

import asyncio
import urllib.parse
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vljax.serve.limits import Limits, Refusal
from vljax.serve.metrics import Metrics

DRAINED = 256 << 20  # bytes of a refused body that are read, so that its client reads the answer
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; media-src blob:; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware. ``hosts``: names by which the server may be called; empty is any.

    A page from elsewhere may have a browser send requests here: its Origin gives it away, or the
    name that it had resolved to this machine.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, hosts: frozenset[str]):
        self._app, self._limits, self._metrics, self._hosts = app, limits, metrics, hosts
        self._coming = 0  # bytes of bodies that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        send = self._marked(scope, send)
        headers = Headers(scope=scope)
        try:
            self._admit(headers)
            room = self._reserve(headers)
        except Refusal as refusal:
            self._metrics.refused.labels(refusal.code).inc()
            await self._drain(receive)
            response = JSONResponse(refusal.body(), refusal.status, refusal.headers())
            return await response(scope, receive, send)
        try:
            await self._app(scope, self._measured(receive), send)
        finally:
            self._coming -= room
        return None

    def _admit(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts and _name(host) not in self._hosts:
            raise Refusal(403, f"host {host[:80]!r}: not a name of this server", "wrong_host")
        origin = headers.get("origin")
        if origin and urllib.parse.urlsplit(origin).netloc != host:
            raise Refusal(403, f"origin {origin[:80]!r}: not a page of this server", "wrong_origin")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "content-encoding: send the body as it is", "encoded_body")

    def _reserve(self, headers: Headers) -> int:
        """Room for a body; one that does not tell its length counts as the longest."""
        most = self._limits.body_bytes
        told = headers.get("content-length")
        length = int(told) if told and told.isdecimal() else 0
        if "transfer-encoding" in headers:
            length = most
        if length > most:
            raise _too_large(most)
        if length and self._coming + length > self._limits.all_bodies:
            raise Refusal(
                429, "too many large requests at a time: try again in a second", "bodies_full"
            )
        self._coming += length
        return length

    def _measured(self, receive: Receive) -> Receive:
        received, complete = 0, False

        async def measured() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is the client's leaving, which has no hurry
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._limits.patience)
            except TimeoutError:
                raise Refusal(
                    408,
                    f"nothing came for {self._limits.patience:g} s: send the whole body",
                    "too_slow",
                ) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self._limits.body_bytes:
                raise _too_large(self._limits.body_bytes)
            return message

        return measured

    async def _drain(self, receive: Receive) -> None:
        read = 0
        try:
            async with asyncio.timeout(self._limits.patience):
                while read < DRAINED:
                    message = await receive()
                    read += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def _marked(self, scope: Scope, send: Send) -> Send:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                route: Any = scope.get("route")
                path = getattr(route, "path", "other")
                self._metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        return marked


def _too_large(most: int) -> Refusal:
    return Refusal(
        413, f"the body is larger than {most:,} bytes: send a smaller file", "body_too_large"
    )


def _name(host: str) -> str:
    """Without its port."""
    return urllib.parse.urlsplit(f"//{host}").hostname or ""
