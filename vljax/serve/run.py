"""Serving: the socket, the programs that are compiled beforehand, and the end."""

import socket
import time
from collections.abc import Callable

import uvicorn

from vljax.progress import Progress
from vljax.serve.app import Server

CONNECTIONS = 512


def listen(host: str, port: int) -> socket.socket:
    """Raises OSError with a sentence where that can't be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise OSError(
            f"--host {host} --port {port}: {error.strerror or error}; name others"
        ) from error
    return made


def serve(server: Server, on: socket.socket, warm: bool, tell: Callable[[str], None]) -> None:
    """Until SIGTERM or Ctrl-C; then what is being answered is finished."""
    if warm:
        began = time.monotonic()
        server.runner.warm(_shown())
        tell(f"compiled in {time.monotonic() - began:.0f} s")
    host, port = on.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    ready = f"http://{shown}:{port} answers as {server.name}; Ctrl-C ends it"
    try:
        _Host(config(server), lambda: tell(ready)).run([on])
    finally:
        server.close()


class _Host(uvicorn.Server):
    """Says when it can be reached."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _shown() -> Callable[[int, int], None]:
    line: list[Progress] = []

    def show(done: int, total: int) -> None:
        line[:] = line or [Progress("compiling", total)]
        line[0].show(done)

    return show


def config(server: Server) -> uvicorn.Config:
    return uvicorn.Config(
        server.app,
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
    )
