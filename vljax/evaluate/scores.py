"""Scores with what a reader needs to judge them: an interval, how many, and chance."""

import math
from collections.abc import Sequence


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def score(hits: Sequence[bool], chance: float | None = None) -> dict[str, float | int | None]:
    """{"accuracy", "low", "high", "n", "chance"} of right and wrong answers."""
    n, right = len(hits), sum(map(bool, hits))
    low, high = wilson(right, n)
    return {
        "accuracy": round(right / n, 4) if n else 0.0,
        "low": round(low, 4),
        "high": round(high, 4),
        "n": n,
        "chance": chance,
    }
