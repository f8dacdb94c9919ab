"""The progress line of long work."""

import sys
import time


class Progress:
    """One line on stderr that is rewritten in place on a terminal, and printed anew in a log."""

    def __init__(self, name: str, total: int, start: int = 0, every: float = 5.0):
        self.name, self.total = name, total
        self.begin(start)
        self.shown = self.began
        self.every = 0.2 if sys.stderr.isatty() else every

    def begin(self, done: int) -> None:
        """From here on the rate is taken."""
        self.first, self.began = done, time.monotonic()

    def show(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.shown < self.every and done < self.total:
            return
        self.shown = now
        line = f"{self.name} {done}/{self.total} {note} {self._rate(done):.2f}/s"
        line += f" ETA {clock(self.left(done))}"
        end = "\n" if done >= self.total or not sys.stderr.isatty() else "\r"
        print(line.ljust(78), end=end, file=sys.stderr, flush=True)

    def left(self, done: int) -> float:
        """Seconds that what is left will take at the rate so far; infinite at the beginning."""
        rate = self._rate(done)
        return (self.total - done) / rate if rate else float("inf")

    def _rate(self, done: int) -> float:
        return (done - self.first) / max(time.monotonic() - self.began, 1e-9)


class Megabytes:
    """A progress line that is made when the total of bytes is known."""

    line: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        self.line = self.line or Progress("MB", -(-total // 10**6))
        self.line.show(-(-total // 10**6) if done == total else done // 10**6)


def clock(seconds: float) -> str:
    """ "4 s", "3:05", "2:03:05"."""
    if seconds == float("inf"):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours}:{m:02}:{s:02}"
    return f"{m}:{s:02}" if m else f"{s} s"
