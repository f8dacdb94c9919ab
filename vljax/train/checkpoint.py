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

    def restore(self, like: TrainState, frozen: str) -> tuple[TrainState, dict[str, Any]] | None:
        """The latest state, placed as ``like`` is, and its meta; None when there is none.

        Raises WeightsError when the run was started on other frozen weights.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _storable(like)
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
            ),
        )
        if restored.meta["frozen"] != frozen:
            raise WeightsError(
                f"checkpoint {step}: was trained on frozen weights {restored.meta['frozen']}, got "
                f"{frozen}; start from the same weights, or name a new workdir"
            )
        state = restored.state
        return state.replace(rng=jax.random.wrap_key_data(state.rng)), restored.meta


def _storable(state: TrainState) -> TrainState:
    """Typed keys as their raw data."""
    return state.replace(rng=jax.random.key_data(state.rng))
