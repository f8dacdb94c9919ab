"""Changes to published tensors before they are mapped: deltas added, positions resized."""

import dataclasses
import math

import numpy as np

from vljax.convert.readers import Entry, TensorInfo, Tensors
from vljax.store import WeightsError

CUBIC = -0.75  # torch's bicubic; Pillow's is -0.5


def with_delta(base: Tensors, delta: Tensors) -> Tensors:
    """Base plus delta, each tensor summed in float32 when it is read, in the base's dtype.

    Rows that only the delta has (the [PAD] of Vicuna's first weights) are added to zeros, as the
    published script does. Raises WeightsError where the two are not of one model.
    """

    def summed(name: str) -> Entry:
        ours, theirs = base.entries[name], delta.entries[name]
        shape = (theirs.info.shape[0], *ours.info.shape[1:])
        if shape != theirs.info.shape or shape[0] < ours.info.shape[0]:
            raise WeightsError(
                f"{theirs.info.file}: {name} is {theirs.info.shape}, the base's {ours.info.shape}; "
                "take the delta that was made for this base"
            )

        def read() -> np.ndarray:
            out = theirs.read().astype(np.float32)
            out[: ours.info.shape[0]] += ours.read().astype(np.float32)
            return out.astype(ours.info.dtype)

        return Entry(TensorInfo(shape, ours.info.dtype, ours.info.file), read)

    learned = [n for n in base if not n.endswith(".inv_freq")]
    if lacking := [n for n in learned if n not in delta]:
        raise WeightsError(
            f"{delta.files[0].parent}: lacks {lacking[0]} (of {len(lacking)}), which the base has; "
            "take the delta that was made for this base"
        )
    entries = {**base.entries, **{name: summed(name) for name in learned}}
    return dataclasses.replace(base, entries=entries, files=(*base.files, *delta.files))


def with_positions(tensors: Tensors, name: str, rows: int) -> Tensors:
    """Resizes position embedding ``name`` [1, 1 + P, D] to ``rows``, if it has another number."""
    if name not in tensors or tensors.info(name).shape[1] == rows:
        return tensors
    info = tensors.info(name)

    def read() -> np.ndarray:
        return resize_positions(tensors[name], rows)

    shape = (1, rows, info.shape[2])
    entry = Entry(TensorInfo(shape, np.dtype(np.float32), info.file), read)
    return dataclasses.replace(tensors, entries={**tensors.entries, name: entry})


def resize_positions(table: np.ndarray, rows: int) -> np.ndarray:
    """[1, 1 + P, D] -> float32 [1, rows, D]: the class row kept, the square grid resized.

    Bicubic without antialiasing, as EVA's loader. Raises WeightsError for grids that aren't square.
    """
    old, new = math.isqrt(table.shape[1] - 1), math.isqrt(rows - 1)
    if (old**2, new**2) != (table.shape[1] - 1, rows - 1):
        raise WeightsError(
            f"pos_embed: got {table.shape[1]} rows, expected one more than a square number"
        )
    table = table[0].astype(np.float32)
    weights = cubic_weights(old, new)
    grid = np.einsum("ia,jb,abd->ijd", weights, weights, table[1:].reshape(old, old, -1))
    return np.concatenate([table[:1], grid.reshape(new * new, -1)])[None].astype(np.float32)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """[new, old]: how much of each old point is in each new one, pixels aligned by their areas."""
    weights = np.zeros((new, old))
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            weights[i, min(max(tap, 0), old - 1)] += _cubic(abs(at - tap))
    return weights


def _cubic(x: float) -> float:
    if x <= 1:
        return (CUBIC + 2) * x**3 - (CUBIC + 3) * x**2 + 1
    return CUBIC * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0
