"""The progress line of long work."""

import sys
import time


class Progress:
    """One line on stderr that is rewritten in place on a terminal, and printed anew in a log."""

    def __init__(self, name: str, total: int, start: int = 0, every: float = 5.0):
        self.name, self.total, self.first = name, total, start
        self.began = self.shown = time.monotonic()
        self.every = 0.2 if sys.stderr.isatty() else every

    def show(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.shown < self.every and done < self.total:
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = (self.total - done) / rate if rate else float("inf")
        line = f"{self.name} {done}/{self.total} {note} {rate:.2f}/s ETA {clock(left)}"
        end = "\n" if done >= self.total or not sys.stderr.isatty() else "\r"
        print(line.ljust(78), end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """ "4 s", "3:05", "2:03:05"."""
    if seconds == float("inf"):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours}:{m:02}:{s:02}"
    return f"{m}:{s:02}" if m else f"{s} s"
