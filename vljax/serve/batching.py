"""Questions of many clients, answered together: one thread gathers and runs batches."""

import asyncio
import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable

from vljax.serve.engine import Ask, Piece, Runner
from vljax.serve.limits import Limits, Refusal
from vljax.serve.metrics import Metrics

log = logging.getLogger(__name__)
Put = Callable[[Piece | Exception], None]


@dataclasses.dataclass(eq=False)
class Job:
    """One question on its way. ``ended``: answered, failed or left by its client."""

    ask: Ask
    alike: Hashable
    put: Put
    ended: bool = False


class Batcher:
    """Takes questions up to ``limits.queue`` at a time, and answers those that are alike together.

    The oldest question's kind goes first, so none waits forever. Methods may be called from any
    thread; pieces are put from the batcher's own.
    """

    def __init__(
        self, runner: Runner, limits: Limits, batch_of: Callable[[int], None] = lambda size: None
    ):
        self._runner, self._limits, self._batch_of = runner, limits, batch_of
        self._waiting: collections.deque[Job] = collections.deque()
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
        job = Job(ask, self._runner.alike(ask), put)
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
        """Ends the thread after the batch that runs; questions that wait are refused."""
        with self._changed:
            self._closed = True
            left, self._waiting = list(self._waiting), collections.deque()
            self._changed.notify()
        for job in left:
            self._finish(job, Refusal(503, "the server is being stopped", "stopping"))
        self._thread.join(seconds)

    def _serve(self) -> None:
        while jobs := self._gather():
            self._batch_of(len(jobs))
            try:
                self._run(jobs)
            except Exception as error:
                log.exception("a batch of %d failed", len(jobs))
                for job in jobs:
                    self._finish(job, error)

    def _gather(self) -> list[Job]:
        """The next batch, once it is full or its first question has waited; [] at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            until = time.monotonic() + self._limits.gather
            while len(self._oldest()) < self._limits.batch and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or (not self._changed.wait(left) and not self._waiting):
                    break
            jobs = self._oldest()
            for job in jobs:
                self._waiting.remove(job)
        return jobs or self._gather()

    def _oldest(self) -> list[Job]:
        alike = [j for j in self._waiting if j.alike == self._waiting[0].alike]
        return alike[: self._limits.batch]

    def _run(self, jobs: list[Job]) -> None:
        pieces = self._runner.run([j.ask for j in jobs], lambda row: not jobs[row].ended)
        for piece in pieces:
            job = jobs[piece.row]
            if piece.end:
                self._finish(job, piece)
            elif not job.ended:
                job.put(piece)
            if all(j.ended for j in jobs):
                break  # nobody is left to answer
        for job in jobs:
            self._finish(job, RuntimeError("the engine gave no end of this answer"))

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
