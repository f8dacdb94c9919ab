"""What the doctor says of a file."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
      file: where it was seen. what: a short code that stays the same, such as "lfs-stub".
      message: one sentence: the file, what was got, what was expected and why, what to do.
      severity: an "error" makes the weights unusable, a "warning" wants a look.
    """

    file: Path
    what: str
    message: str
    severity: Literal["error", "warning"] = "error"


def listed(names: list[str], most: int = 5) -> str:
    """ "a, b, c, ... (9 in all)"."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
