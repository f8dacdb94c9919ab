"""Questions of many clients, answered together in one batch that they join and leave."""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable

from vljax.serve.engine import Ask, Piece, Pieces, Runner
from vljax.serve.limits import Limits, Refusal
from vljax.serve.metrics import Metrics

log = logging.getLogger(__name__)
Put = Callable[[Piece | Exception], None]


@dataclasses.dataclass(eq=False)
class Job:
    """One question on its way. ``ended``: answered, failed or left by its client."""

    ask: Ask
    put: Put
    since: float = dataclasses.field(default_factory=time.monotonic)
    ended: bool = False


class Batcher:
    """Takes questions up to ``limits.queue`` at a time; they join and leave one running batch.

    Who comes while others are answered waits ``limits.gather`` for company at most, because
    several prompts are read faster together, and because others stand still meanwhile. Methods may
    be called from any thread; pieces are put from the batcher's own.
    """

    def __init__(
        self, runner: Runner, limits: Limits, batch_of: Callable[[int], None] = lambda size: None
    ):
        self._runner, self._limits, self._batch_of = runner, limits, batch_of
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: dict[Ask, Job] = {}
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="batches", daemon=True)
        self._thread.start()

    @property
    def taken(self) -> int:
        """Slots in use: questions that wait or are being answered."""
        return self._taken

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, ask: Ask, put: Put) -> Job:
        """Raises Refusal where all slots are taken, or the server is being stopped."""
        job = Job(ask, put)
        with self._changed:
            if self._closed:
                raise Refusal(503, "the server is being stopped: try again later", "stopping")
            if self._taken >= self._limits.queue:
                raise Refusal(
                    429,
                    f"{self._taken} questions wait already: try again in a second",
                    "queue_full",
                )
            self._taken += 1
            self._waiting.append(job)
            self._changed.notify()
        return job

    def leave(self, job: Job) -> None:
        """Gives up a question, which frees its slot at once; one that has ended stays so."""
        with self._changed:
            if job.ended:
                return
            self._end(job)
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self, seconds: float = 10.0) -> None:
        """Ends the thread once what runs is answered; questions that wait are refused."""
        with self._changed:
            self._closed = True
            left, self._waiting = list(self._waiting), collections.deque()
            self._changed.notify()
        for job in left:
            self._finish(job, Refusal(503, "the server is being stopped", "stopping"))
        self._thread.join(seconds)

    def _serve(self) -> None:
        while self._await_work():
            try:
                self._turn()
            except Exception as error:
                log.exception("a batch of %d failed", len(self._running))
                for job in self._running.values():
                    self._finish(job, error)
                self._running.clear()
                self._runner.clear()

    def _await_work(self) -> bool:
        """Whether there is some, or the end has come."""
        with self._changed:
            while not self._waiting and not self._running:
                if self._closed:
                    return False
                self._changed.wait()
        return True

    def _turn(self) -> None:
        """Who has left goes, who waits joins, and everybody is given a token."""
        for ask in [ask for ask, job in self._running.items() if job.ended]:
            self._runner.leave(ask)
            del self._running[ask]
        pieces: Pieces = []
        if joining := self._joining():
            self._running |= {job.ask: job for job in joining}
            pieces += self._runner.join([job.ask for job in joining])
        else:
            pieces += self._runner.advance()
        if self._running:
            self._batch_of(len(self._running))
        for ask, piece in pieces:
            job = self._running[ask]
            if piece.end:
                del self._running[ask]
                self._finish(job, piece)
            elif not job.ended:
                job.put(piece)

    def _joining(self) -> list[Job]:
        with self._changed:
            count = min(self._runner.free(), len(self._waiting))
            if not count:
                return []
            full = count == self._runner.free()
            waited = time.monotonic() - self._waiting[0].since
            if self._running and not full and waited < self._limits.gather:
                return []
            return [self._waiting.popleft() for _ in range(count)]

    def _finish(self, job: Job, last: Piece | Exception) -> None:
        with self._changed:
            if job.ended:
                return
            self._end(job)
        job.put(last)

    def _end(self, job: Job) -> None:
        job.ended = True
        self._taken -= 1


class Answer:
    """One question's pieces as they come, from when it has a slot until ``leave`` frees that."""

    def __init__(self, batcher: Batcher, ask: Ask, metrics: Metrics):
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._batcher, self._metrics, self._asked = batcher, metrics, time.monotonic()
        self._job = batcher.submit(ask, self._put)

    def _put(self, piece: Piece | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, piece)

    def leave(self) -> None:
        """Frees the slot, if the answer has not come to its end."""
        if not self._job.ended:
            self._metrics.left.inc()
        self._batcher.leave(self._job)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        waited = False
        while True:
            piece = await self._arrived.get()
            if isinstance(piece, Exception):
                raise piece
            if not waited:
                self._metrics.first.observe(time.monotonic() - self._asked)
            waited = True
            yield piece
            if piece.end:
                self._metrics.whole.observe(time.monotonic() - self._asked)
                self._metrics.tokens.inc(piece.tokens)
                return

    async def whole(self) -> tuple[str, Piece]:
        """The answer's text, and its last piece."""
        pieces = [piece async for piece in self]
        return "".join(p.text for p in pieces), pieces[-1]
