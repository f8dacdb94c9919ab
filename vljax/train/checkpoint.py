"""Run checkpoints: trainables, optimizer, step and what the run is; written by Orbax.

A checkpoint tells a checksum of each of its arrays. One that is not whole, or not as it was
written, is put aside as STEP.bad, and the one before it is used.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vljax.sharding.processes import told_by_first
from vljax.store import Stored, WeightsError, flatten
from vljax.train.step import TrainState

FORMAT = 2
NONE, ALL_BAD = -1, -2  # in place of a step
UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


class OtherVersion(WeightsError):
    """A checkpoint that is whole, and whose format is another."""


class Checkpoints:
    """The checkpoints below ``folder``, asynchronous; a context manager that finishes writing.

    They may be restored onto another mesh, and by another number of processes.
    """

    def __init__(self, folder: Path, keep: int = 2):
        """Raises WeightsError where there are checkpoints, and none of them is whole."""
        self.folder = folder.absolute()
        self.step = told_by_first(lambda: last_whole(self.folder))
        if self.step == ALL_BAD:
            raise WeightsError(
                f"{folder}: none of its checkpoints is whole; bring one back, or delete the folder "
                "to begin anew"
            )
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._checksums = jax.jit(lambda state: jax.tree.map(checksum, state))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts writing; ``meta`` is JSON. A step that is already there is left as it is."""
        state = _storable(state)
        sums = flatten(self._checksums(state))
        arrays = {n: [x.shape, str(x.dtype), int(sums[n])] for n, x in flatten(state).items()}
        meta = {**meta, "format": FORMAT, "arrays": arrays}
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(
        self, like: TrainState, facts: dict[str, Any]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state, placed as ``like`` is, and its meta; None when there is none.

        Raises WeightsError when the run that wrote it differs in one of ``facts``: the hash of its
        frozen weights, its config.
        """
        if self.step == NONE:
            return None
        path = self.folder / str(self.step)
        meta = read_meta(path)
        for name, value in facts.items():
            if meta.get(name) != value:
                where, before, now = difference(name, meta.get(name), value)
                raise WeightsError(
                    f"checkpoint {self.step}: was written with {where}={before}, got {now}; give "
                    "the same command again, or name a new workdir"
                )
        arrays = {x.name: x for x in stored_arrays(path, meta)}
        like = _storable(like)
        shapes = {n: (x.shape, np.dtype(x.dtype)) for n, x in flatten(like).items()}
        if shapes != {n: (x.shape, x.dtype) for n, x in arrays.items()}:
            raise WeightsError(
                f"checkpoint {self.step}: its arrays are not those of this run; name a new workdir"
            )
        leaves = [arrays[n].put(x.sharding) for n, x in flatten(like).items()]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return state.replace(rng=jax.random.wrap_key_data(state.rng)), meta


def last_whole(folder: Path) -> int:
    """The last step whose checkpoint is whole, or NONE, or ALL_BAD; later ones are put aside."""
    steps = sorted((int(p.name) for p in folder.glob("*") if p.name.isdecimal()), reverse=True)
    bad: list[Path] = []
    for step in steps:
        reason = fault(folder / str(step))
        if reason is None:
            for path in bad:
                put_aside(path)
            return step
        print(f"checkpoint {step} is left out: {reason}", file=sys.stderr)
        bad.append(folder / str(step))
    return ALL_BAD if bad else NONE


def put_aside(path: Path) -> None:
    """As PATH.bad, or a name after it that is free: to be looked at, and in nobody's way."""
    taken = len(list(path.parent.glob(f"{path.name}.bad*")))
    path.rename(path.with_name(f"{path.name}.bad{taken or ''}"))


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, if anything is."""
    if not (path / "commit_success.txt").is_file():
        return "it was not written to its end"
    try:
        meta = read_meta(path)
        for array in stored_arrays(path, meta):
            if int(checksum_on_host(array.read())) != meta["arrays"][array.name][2]:
                return f"{array.name} is not what was written"
    except OtherVersion:
        return None  # told where it is restored
    except Exception as error:  # what is damaged can raise anything
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"it can't be read ({told[:200]})"
    return None


def read_meta(path: Path) -> dict[str, Any]:
    """Raises ValueError where it is no JSON, OtherVersion where its format is another."""
    meta = json.loads((path / "meta" / "metadata").read_bytes())
    if meta.get("format") != FORMAT:
        if not {"format", "frozen"} & set(meta):
            raise ValueError("its facts are not those of a checkpoint")
        raise OtherVersion(
            f"{path}: was written by another version of vljax; let that one finish the run, or "
            "name a new workdir"
        )
    return meta


def stored_arrays(path: Path, meta: dict[str, Any]) -> list[Stored]:
    return [
        Stored(path / "state", name, tuple(shape), np.dtype(dtype))
        for name, (shape, dtype, _) in meta["arrays"].items()
    ]


def checksum(x: jax.Array) -> jax.Array:
    """Of an array's bits: each element times an odd number of its place, summed modulo 2**32.

    A flipped bit always changes it, and in whole numbers no mesh's order of summing does.
    """
    bits = jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def checksum_on_host(x: np.ndarray) -> np.uint32:
    """The same, of an array on the host."""
    bits = x.reshape(-1).view(f"u{x.dtype.itemsize}").astype(np.uint32)
    odd = 2 * np.arange(bits.size, dtype=np.uint32) + np.uint32(1)
    return np.sum(bits * odd, dtype=np.uint32)


def difference(name: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The dotted name of the first place where two JSON values differ, and what stands there."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return difference(f"{name}.{key}", before.get(key), now.get(key))
    return name, before, now


def _storable(state: TrainState) -> TrainState:
    """Typed keys as their raw data."""
    return state.replace(rng=jax.random.key_data(state.rng))
