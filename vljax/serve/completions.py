"""``/v1/chat/completions``: from a request's JSON to its answer, whole or streamed."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vljax.generate import engine as generate
from vljax.serve.batching import Answer, Batcher
from vljax.serve.chat import Chat, parse
from vljax.serve.completion import Completion, event
from vljax.serve.engine import Ask, Runner
from vljax.serve.fetch import fetch
from vljax.serve.limits import Limits, Refusal, require_type
from vljax.serve.media import Files, Kept, together
from vljax.serve.metrics import Metrics
from vljax.serve.parts import Part

log = logging.getLogger(__name__)


class Completions:
    """Answers as the model called ``name``; ``senses`` says whether it sees and hears."""

    def __init__(
        self,
        name: str,
        senses: tuple[bool, bool],
        limits: Limits,
        runner: Runner,
        files: Files,
        batcher: Batcher,
        metrics: Metrics,
    ):
        self.name, self.senses, self.limits, self.runner = name, senses, limits, runner
        self.files, self.batcher, self.metrics = files, batcher, metrics

    async def __call__(self, request: Request) -> Response:
        require_type(request.headers, "application/json")
        chat = await run_in_threadpool(parse, await request.body(), self.limits)
        require_model(chat.model, self.name)
        ask = await self.ask(chat)
        try:
            length = await run_in_threadpool(self.runner.prompt_tokens, ask)
        except ValueError as error:
            raise Refusal(400, str(error), "prompt", "messages") from error
        completion = Completion(self.name, length)
        answer = Answer(self.batcher, ask, self.metrics)
        if chat.stream:
            return Stream(completion.chunks(answer, chat.include_usage), answer)
        return await whole(request, completion, answer)

    async def ask(self, chat: Chat) -> Ask:
        """The question with what it is about, decoded."""
        kept = [(part.kind, await self._kept(part)) for part in chat.parts]
        look, listen = chat.look and self.senses[0], chat.listen and self.senses[1]
        media = together(kept, look, listen)
        asked = generate.Request(chat.question, media, chat.history, chat.system)
        seed = secrets.randbits(32) if chat.seed is None else chat.seed
        return Ask(asked, chat.sampling, seed, chat.stream)

    async def _kept(self, part: Part) -> Kept:
        if part.file_id:
            return self.files.get(part.file_id)
        if part.url:
            data = await run_in_threadpool(fetch, part.url, self.limits)
            return await self.files.inline(part.name, data)
        return await self.files.inline(part.name, part.data)


def require_model(got: str | None, name: str) -> None:
    if got not in (None, name):
        told = f"model: got {str(got)[:80]!r}, expected {name!r}"
        raise Refusal(404, told, "model_not_found", "model")


async def whole(request: Request, completion: Completion, answer: Answer) -> Response:
    """The whole answer, unless its client leaves before."""
    collecting = asyncio.create_task(answer.whole())
    leaving = asyncio.create_task(_until_gone(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=499)
        return JSONResponse(completion.whole(*collecting.result()))
    finally:
        answer.leave()
        leaving.cancel()
        collecting.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Stream(StreamingResponse):
    """Server-sent events. However it ends, the answer's slot is freed."""

    def __init__(self, chunks: AsyncIterator[str], answer: Answer):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(told(chunks), media_type="text/event-stream", headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.leave()


async def told(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """The chunks; an error in their midst is told as OpenAI does, since the status has gone out."""
    try:
        async for chunk in chunks:
            yield chunk
    except Refusal as refusal:
        yield event(refusal.body())
    except Exception:
        log.exception("an answer failed")
        yield event(failure().body())


def failure() -> Refusal:
    return Refusal(500, "the answer failed: see the server's log", "internal_error")
