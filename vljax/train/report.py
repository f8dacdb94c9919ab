"""What a run says while it goes on: the progress line, and the same to files."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vljax.progress import Progress
from vljax.train.metrics import MetricsLog, TensorBoard
from vljax.train.speed import Speed, Work


class Pending(NamedTuple):
    """A finished or running step: its number from 1, its metrics, not yet read, and its work."""

    step: int
    metrics: dict[str, Any]
    work: Work


class Report:
    """Call it with every step; each ``every``-th and the last are written. A context manager.

    Reads the metrics of the step before, while the device works on this one. Of several processes
    the one that ``writes`` does; all of them read.
    """

    def __init__(
        self,
        name: str,
        workdir: Path,
        start: int,
        steps: int,
        every: int,
        rate: Callable[[int], Any],
        speed: Speed,
        writes: bool = True,
    ):
        self.speed = speed
        self._name, self._steps, self._every, self._rate = name, steps, every, rate
        self._began, self._first = time.monotonic(), True
        self._progress = Progress(name, steps, start)
        self._log = MetricsLog(workdir, start) if writes else None
        self._board = TensorBoard(workdir, start) if writes else None

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board:
            self._board.close()

    def __call__(self, pending: Pending) -> None:
        step, metrics, work = pending
        self.speed.done(work)
        due = step % self._every == 0 or step == self._steps
        if not due and not self._first:
            return
        self.require_finite(pending)
        values = {name: float(value) for name, value in metrics.items()}  # waits for the step
        values |= self.speed.read()
        if self._first:  # before it, programs were compiled: no rate counts that
            self._first = False
            self._progress.begin(step)
        if due:
            self._write(step, values)

    def _write(self, step: int, values: dict[str, float]) -> None:
        if not self._log or not self._board:
            return
        seconds = round(time.monotonic() - self._began, 2)
        row = {"step": step, **values, "lr": float(self._rate(step - 1)), "seconds": seconds}
        left = self._progress.left(step)
        if np.isfinite(left):
            row["eta_s"] = round(left, 1)
        self._log.write(row)
        self._board.write(row)
        self._progress.show(step, note(row))

    def require_finite(self, pending: Pending) -> None:
        """Nothing that is not a number is ever written down as progress."""
        loss, norm = (float(pending.metrics[name]) for name in ("loss", "grad_norm"))
        if not np.isfinite([loss, norm]).all():
            raise FloatingPointError(
                f"{self._name}: loss is {loss}, gradient norm {norm} at step {pending.step}; lower "
                "--config.optimizer.peak_lr, or look at every step with --config.log_every=1"
            )


def note(row: dict[str, Any]) -> str:
    """ "loss 2.3142, 30,720 samples, 412 clips/s, 52,736 tokens/s/device, MFU 48.1%"."""
    parts = [f"loss {row['loss']:.4f}"]
    for name, shown in (
        ("samples", "{:,.0f} samples"),
        ("clips_per_s", "{:.3g} clips/s"),
        ("tokens_per_s_per_device", "{:,.0f} tokens/s/device"),
        ("mfu", "MFU {:.1%}"),
    ):
        if name in row:
            parts.append(shown.format(row[name]))
    return ", ".join(parts)
