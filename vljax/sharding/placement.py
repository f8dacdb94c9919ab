"""From logical axes to PartitionSpecs: pure, and strict about names."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vljax.sharding.strategy import AXES, Rules, Strategy

log = logging.getLogger(__name__)


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], rules: Rules, mesh: dict[str, int]
) -> PartitionSpec:
    """The spec of an array of ``shape`` with logical ``axes`` on a mesh of {axis: size}.

    A mesh axis used earlier in this spec is skipped; one that does not divide what is left of the
    dimension is skipped and logged (12 heads, 257 tokens and odd vocabularies are ordinary).
    Raises ValueError for a name that is not in the vocabulary.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {tuple(axes)}: expected {len(shape)} of them for shape {shape}")
    table, spec = dict(rules), []
    used: set[str] = set()
    for name, size in zip(axes, shape, strict=True):
        if name is not None and name not in AXES:
            raise ValueError(f"logical axis: got {name!r}, expected one of {', '.join(AXES)}")
        wanted = table.get(name, ()) if name else ()
        wanted = (wanted,) if isinstance(wanted, str) else wanted
        chosen: tuple[str, ...] = ()
        for axis in wanted:
            parts = math.prod(mesh[a] for a in chosen) * mesh.get(axis, 1)
            if mesh.get(axis, 1) == 1 or axis in used:
                continue
            if size % parts:
                log.debug("%s of size %d is not split over %s (%d)", name, size, axis, mesh[axis])
                continue
            chosen = (*chosen, axis)
        used.update(chosen)
        spec.append(chosen[0] if len(chosen) == 1 else chosen or None)
    return PartitionSpec(*spec)


def reading(mesh: Mesh, axes: str | Sequence[str]) -> dict[int, int]:
    """By process, which group it is in, of those that hold the same rows of a batch over ``axes``.

    Raises ValueError where two processes share some of their rows only.
    """
    wanted = (axes,) if isinstance(axes, str) else axes
    over = [axis for axis in mesh.axis_names if axis in wanted]
    rows: dict[int, set[tuple[int, ...]]] = {}
    for place, device in np.ndenumerate(mesh.devices):
        at = dict(zip(mesh.axis_names, place, strict=True))
        rows.setdefault(device.process_index, set()).add(tuple(at[axis] for axis in over))
    distinct = sorted({tuple(sorted(held)) for held in rows.values()})
    if len({row for held in distinct for row in held}) < sum(map(len, distinct)):
        raise ValueError(
            f"mesh {dict(mesh.shape)}: got processes that hold some rows of a batch in common, "
            f"expected all or none; give {' or '.join(over)} another size"
        )
    return {process: distinct.index(tuple(sorted(held))) for process, held in rows.items()}


class Placement:
    """A strategy on a mesh: where parameters, batches and activations live."""

    def __init__(self, strategy: Strategy, mesh: Mesh):
        self.strategy, self.mesh = strategy, mesh
        self._sizes = dict(mesh.shape)

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        return NamedSharding(
            self.mesh, partition_spec(axes, shape, self.strategy.rules, self._sizes)
        )

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def parameters(self, boxed: Any) -> Any:
        """Shardings of a tree of (abstract) parameters boxed with their logical names."""

        def one(leaf: Any) -> NamedSharding:
            if isinstance(leaf, nn.Partitioned):
                return self.sharding(leaf.names, leaf.value.shape)
            return self.replicated

        return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))

    def batch(self, batch: Any) -> Any:
        """Shardings of a batch: its first axis over the data axes."""
        return jax.tree.map(
            lambda x: self.sharding(("batch", *[None] * (x.ndim - 1)), x.shape), batch
        )

    def readers(self) -> tuple[int, int]:
        """Which of how many groups of processes this one is in; a group reads the same rows.

        Where a model's axis crosses processes, these hold the same part of a batch.
        """
        groups = reading(self.mesh, dict(self.strategy.rules)["batch"])
        return groups[jax.process_index()], len(set(groups.values()))

    def constrain(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        """For ``nn.layers.constraining``: names of an activation become a constraint."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes, x.shape))
