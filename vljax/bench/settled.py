"""What libtpu has settled of a program before it writes machine code, for ten times as long.

A plan wants to know memory and collectives, and both are final as soon as buffers are assigned; of
the files that XLA dumps one is written then, and only if the program fits.
"""

import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

LAST = "*after_optimizations_after_buffer_assignment.txt"
ASSIGNMENT = "*after_optimizations-buffer-assignment.txt"
LOOK_S = 0.1


def settled(compiling: Callable[[], Any], folder: Path) -> Any:
    """What ``compiling()`` returns or raises; None as soon as buffers are assigned in ``folder``.

    It is then still at work, in a thread that ends with the process.
    """
    compiled: Future[Any] = Future()

    def run() -> None:
        try:
            compiled.set_result(compiling())
        except Exception as error:
            compiled.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not wait([compiled], LOOK_S).done:
        if any(folder.glob(LAST)):
            return None
    return compiled.result()


def assigned(folder: Path) -> dict[str, int]:
    """Bytes of "arguments", "temporaries" and "outputs" (those that do not replace an argument)."""
    text = next(folder.glob(ASSIGNMENT)).read_text()
    sizes = {"arguments": 0, "temporaries": 0, "outputs": 0}
    for size, kind in re.findall(r"^allocation \d+: size (\d+), page 0, (.*)$", text, re.MULTILINE):
        if kind.startswith("parameter"):
            sizes["arguments"] += int(size)
        elif kind.startswith("preallocated-temp"):
            sizes["temporaries"] += int(size)
        elif "maybe-live-out" in kind:
            sizes["outputs"] += int(size)
    return sizes
