"""The routes of one server, and what it holds."""

import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from vljax.generate.chat import SAMPLE
from vljax.generate.engine import Engine
from vljax.serve import files
from vljax.serve.batching import Batcher
from vljax.serve.completions import Completions, failure, require_model
from vljax.serve.engine import EngineRunner, Runner
from vljax.serve.guard import Guard
from vljax.serve.limits import Limits, Refusal
from vljax.serve.media import Files
from vljax.serve.metrics import Metrics

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"


class Server:
    """One model behind HTTP; ``app`` is its ASGI application.

    Args:
      name: what requests call the model. hosts: names by which the server may be called; none
        given is any. runner: in the place of the engine's own.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        limits: Limits = Limits(),
        hosts: frozenset[str] = frozenset(),
        runner: Runner | None = None,
    ):
        self.name, self.limits, self.started = name, limits, int(time.time())
        self.senses = engine.senses()
        self.metrics = Metrics()
        self.runner = runner or EngineRunner(engine, limits.batch)
        self.files = Files(engine.size, limits, self.metrics)
        self.batcher = Batcher(self.runner, limits, self.metrics.batches.observe)
        self.metrics.watch("vljax_slots_taken", "Questions here", lambda: self.batcher.taken)
        self.metrics.watch("vljax_waiting", "Questions waiting", lambda: self.batcher.waiting)
        self.app = Starlette(
            routes=self.routes(),
            middleware=[Middleware(Guard, limits=limits, metrics=self.metrics, hosts=hosts)],
            exception_handlers={
                Refusal: self._refused,
                HTTPException: self._http,
                ClientDisconnect: self._gone,
                Exception: self._failed,
            },
        )

    def close(self) -> None:
        """Ends the thread and the processes."""
        self.batcher.close()
        self.files.close()

    def routes(self) -> list[Route]:
        completions = Completions(
            self.name,
            self.senses,
            self.limits,
            self.runner,
            self.files,
            self.batcher,
            self.metrics,
        )
        return [
            Route("/", _static("page.html")),
            Route("/page.css", _static("page.css")),
            Route("/page.js", _static("page.js")),
            Route("/sample.mp4", _sample),
            Route("/health", self.health),
            Route("/metrics", self.measures),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", completions.__call__, methods=["POST"]),
            *files.routes(self.files),
        ]

    async def health(self, request: Request) -> Response:
        alive = self.batcher.alive()
        state = {
            "status": "ok" if alive else "failed",
            "model": self.name,
            "sees": self.senses[0],
            "hears": self.senses[1],
            "taken": self.batcher.taken,
            "waiting": self.batcher.waiting,
            "slots": self.limits.queue,
            "file_bytes": self.limits.file_bytes,
            "new_tokens": self.limits.new_tokens,
        }
        return JSONResponse(state, 200 if alive else 503)

    async def measures(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        require_model(request.path_params["name"], self.name)
        return JSONResponse(self._model())

    def _model(self) -> dict[str, object]:
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "vljax"}

    async def _refused(self, request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)
        self.metrics.refused.labels(refusal.code).inc()
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    async def _http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = f"{request.method} {request.url.path[:80]}: {error.detail}"
        return await self._refused(request, Refusal(error.status_code, told, "http"))

    async def _gone(self, request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def _failed(self, request: Request, error: Exception) -> Response:
        return await self._refused(request, failure())


Handler = Callable[[Request], Awaitable[Response]]


def _static(name: str) -> Handler:
    async def static(request: Request) -> Response:
        return FileResponse(PAGE / name, headers={"Cache-Control": "no-cache"})

    return static


async def _sample(request: Request) -> Response:
    return FileResponse(SAMPLE, media_type="video/mp4")
