"""A trace of some steps, as XProf and Perfetto read it."""

from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Traces steps ``first`` to ``last`` (from 0, where the command began) into ``folder``.

    A context manager; call ``before`` and ``after`` around each step. Without a ``window`` it does
    nothing.
    """

    def __init__(self, folder: Path, window: tuple[int, int] | None, steps: int):
        if window and not 0 <= window[0] < window[1] <= steps:
            raise ValueError(
                f"--profile: got {window[0]}:{window[1]}, expected FROM < TO within the "
                f"{steps} steps that are left"
            )
        self._folder, self._window, self._running = folder, window, False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        if self._window and step == self._window[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """``results`` of the step are waited for before the trace ends."""
        if self._window and step + 1 == self._window[1]:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
