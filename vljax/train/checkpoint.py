"""Run checkpoints: trainables, optimizer, step and what the run is, by Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vljax.store import WeightsError
from vljax.train.step import TrainState


class Checkpoints:
    """The checkpoints below ``folder``, asynchronous; a context manager that finishes writing."""

    def __init__(self, folder: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts writing; ``meta`` is JSON. A step that is already there is left as it is."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_storable(state)), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(
        self, like: TrainState, facts: dict[str, Any]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state, placed as ``like`` is, and its meta; None when there is none.

        Raises WeightsError when the run that wrote it differs in one of ``facts``: the hash of its
        frozen weights, its config.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        read = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=read).meta
        for name, value in facts.items():
            if meta.get(name) != value:
                where, before, now = difference(name, meta.get(name), value)
                raise WeightsError(
                    f"checkpoint {step}: was written with {where}={before}, got {now}; give the "
                    "same command again, or name a new workdir"
                )
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _storable(like)
        )
        read = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        state = self._manager.restore(step, args=read).state
        return state.replace(rng=jax.random.wrap_key_data(state.rng)), meta


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
