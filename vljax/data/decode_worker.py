"""Decoding in processes of its own: a clip on which the decoder hangs or dies takes no run with it.

A worker is a fresh interpreter that imports what its jobs name (PyAV and numpy, neither JAX nor
TensorFlow). It reads pickled jobs from its standard input and ends when that closes, as it does
when the main process is gone, however it went. The time limit is the kernel's alarm, which also
stops code that never comes back to Python: no worker outlives it.
"""

import atexit
import contextlib
import dataclasses
import os
import pickle
import queue
import resource
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

ATTEMPTS = 2  # a worker may also die of something outside, such as a lack of memory
GRACE = 5.0  # seconds beyond the time limit before the main process kills a worker itself
_START = "from vljax.data.decode_worker import work; work(float({seconds}), int({memory}))"


class DecoderDied(RuntimeError):
    """A job took its worker down, or took too long; one clause that says how."""


class Closed(RuntimeError):
    """The decoders were closed before a job was done: no clip's fault."""


class NotStarted(RuntimeError):
    """A worker that did not come up: no clip's fault."""


@dataclasses.dataclass
class _Job:
    message: bytes  # the pickled call
    answer: Future


class Decoders:
    """Worker processes that run functions; a context manager that ends them.

    Functions, arguments and results are pickled, so a function must be importable by name. Workers
    start with the first jobs and anew when one died. May be called from several threads.

    Args:
      workers: how many processes. seconds: most time of one job.
      memory: most bytes of address space of one worker.
    """

    def __init__(self, workers: int = 2, seconds: float = 60.0, memory: int = 6 << 30):
        if workers < 1 or seconds <= 0:
            raise ValueError(
                f"decoding: got {workers} workers and a limit of {seconds} s, expected 1 or more "
                "of each"
            )
        self._seconds, self._memory = seconds, memory
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._running: set[_Worker] = set()
        self._lock, self._closed = threading.Lock(), False
        # Daemons: the interpreter must not wait at its end for a clip that hangs.
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """The future result of a call, or its error: the function's own, DecoderDied, Closed."""
        job = _Job(pickle.dumps((function, args), protocol=5), Future())
        with self._lock:
            if self._closed:
                raise Closed("the decoders are closed")
            if not self._threads[0].ident:
                atexit.register(self.close)  # what waits for a job must not hold up the end
                for thread in self._threads:
                    thread.start()
            self._jobs.put(job)
        return job.answer

    def pids(self) -> list[int]:
        """The processes that run now."""
        with self._lock:
            return [worker.process.pid for worker in self._running]

    def close(self) -> None:
        """Kills the workers; jobs that are not done fail."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
            for worker in self._running:
                worker.process.kill()
        started = [thread for thread in self._threads if thread.ident]
        for _ in started:
            self._jobs.put(None)
        for thread in started:
            thread.join()
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job.answer.set_exception(Closed("the decoders are closed"))

    def _serve(self) -> None:
        """One thread a worker: hands it jobs, waits for answers, replaces it when it died."""
        worker: _Worker | None = None
        while (job := self._jobs.get()) is not None:
            for _ in range(ATTEMPTS):
                try:
                    worker = worker or self._start()
                    ok, value = worker.call(job.message)
                    break
                except (DecoderDied, NotStarted, Closed) as error:
                    self._forget(worker)
                    worker, ok, value = None, False, error
                    if self._closed:  # which is why it died
                        value = Closed("the decoders are closed")
                    if not isinstance(value, DecoderDied):
                        break
            (job.answer.set_result if ok else job.answer.set_exception)(value)
        self._forget(worker)

    def _start(self) -> "_Worker":
        with self._lock:
            if self._closed:
                raise Closed("the decoders are closed")
            worker = _Worker(self._seconds, self._memory)
            self._running.add(worker)
            return worker

    def _forget(self, worker: "_Worker | None") -> None:
        if worker is not None:
            worker.end()
            with self._lock:
                self._running.discard(worker)


class _Worker:
    """One process, as its thread sees it."""

    def __init__(self, seconds: float, memory: int):
        self._seconds = seconds
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START.format(seconds=seconds, memory=memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pipesize=1 << 20,  # about one clip
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise NotStarted(f"a decoding process cannot be started ({error})") from error
        self._in: Any = self.process.stdin
        self._out: Any = self.process.stdout
        self._ready = False

    def call(self, message: bytes) -> tuple[bool, Any]:
        """Whether the call returned, and what it returned or raised; DecoderDied if neither."""
        self._await_start()
        try:
            self._in.write(message)
            self._in.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(self._out, selectors.EVENT_READ)
                if not selector.select(self._seconds + GRACE):
                    raise DecoderDied(self._too_long())
            return pickle.load(self._out)
        except DecoderDied:
            raise
        except Exception:  # a pipe that closed, or half of an answer
            raise DecoderDied(self._death()) from None

    def _await_start(self) -> None:
        """Its imports are not on the first job's time."""
        if not self._ready and self._out.read(1) != b"!":
            raise NotStarted(
                f"a decoding process did not start (status {self.process.wait()}): see its "
                "message above"
            )
        self._ready = True

    def _too_long(self) -> str:
        return f"decoding took longer than {self._seconds:g} s and was stopped"

    def _death(self) -> str:
        """Why the process is gone, or was made to go."""
        try:
            status = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "its decoding process closed its output"
        if status == -signal.SIGALRM:
            return self._too_long()
        if status < 0:
            return f"it crashed the decoder ({signal.Signals(-status).name})"
        return f"it ended the decoding process (status {status})"

    def end(self) -> None:
        self.process.kill()
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):  # a job that was only half written
                pipe.close()
        # What hangs in the kernel (a dead network disk) does not die of it: it is not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)


def work(seconds: float, memory: int) -> None:
    """What a worker process does: jobs in, answers out, until its input closes."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole group: the main process finishes its step.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory(memory)
    jobs = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints is no answer
    import vljax.data.clips  # noqa: F401  the usual jobs' module

    answers.write(b"!")
    answers.flush()
    for function, args in _jobs(jobs):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = _answer(function, args)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            answers.write(answer)
            answers.flush()
        except BrokenPipeError:
            os._exit(0)


def _jobs(file: BinaryIO) -> Iterable[tuple[Callable[..., Any], tuple[Any, ...]]]:
    while True:
        try:
            yield pickle.load(file)
        except (EOFError, pickle.UnpicklingError):  # cut off in the middle: the same end
            return


def _answer(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((True, function(*args)), protocol=5)
    except Exception as error:
        try:
            message = pickle.dumps((False, error))
            pickle.loads(message)  # some exceptions can be written and not read
            return message
        except Exception:
            told = f"{type(error).__name__}: {error}"
            return pickle.dumps((False, ValueError(told)))


def _limit_memory(memory: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    with contextlib.suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
