"""Watching over a run: signals are noted until a step is saved, and a hang does not last."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

HUNG = 124  # the exit code, as of timeout(1)
FIRST = 3  # times the seconds of a step may be taken until the first is done: it compiles
GRACE = 10.0  # seconds


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are only noted, in the list given: the step is finished and saved first.

    Raised inside a step they would leave a donated, dead state. The second one is not held back.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


class Watchdog:
    """Ends the process, with all stacks told, when ``beat`` is not heard for ``seconds``.

    The stacks go to stderr and to ``file``, and the exit code is ``HUNG``. It is a thread: a main
    thread that waits in C code does not stop it. Should one hold Python's lock for as long, C's own
    timer tells the stacks to stderr alone and exits with 1. With 0 seconds it does nothing.
    """

    def __init__(self, seconds: float, file: Path):
        self._seconds, self._file = seconds, file
        self._last = time.monotonic() + (FIRST - 1) * seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._set_timer(FIRST * self._seconds + GRACE)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._seconds:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """A step is done."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(min(GRACE, self._seconds / 4)):
            self._set_timer(self._seconds + GRACE)
            if time.monotonic() - self._last > self._seconds:
                self._bite()

    def _set_timer(self, seconds: float) -> None:
        """C's; to the process's own stderr, since a notebook's has no file."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)

    def _bite(self) -> None:
        with contextlib.suppress(OSError), self._file.open("w") as file:
            self._tell(file)
        self._tell(sys.__stderr__ or sys.stderr)
        os._exit(HUNG)

    def _tell(self, file: TextIO) -> None:
        print(f"no step was done in {self._seconds:g} s; what each thread does:", file=file)
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
