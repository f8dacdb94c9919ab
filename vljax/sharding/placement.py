"""From logical axes to PartitionSpecs: pure, and strict about names."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vljax.sharding.strategy import AXES, Rules, Strategy

log = logging.getLogger(__name__)


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], rules: Rules, mesh: dict[str, int]
) -> PartitionSpec:
    """The spec of an array of ``shape`` with logical ``axes`` on a mesh of {axis: size}.

    A mesh axis used earlier in this spec is skipped; one that does not divide the dimension is
    skipped and logged (12 heads, 257 tokens and odd vocabularies are ordinary). Raises ValueError
    for a name that is not in the vocabulary.
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
        chosen = tuple(a for a in wanted if mesh.get(a, 1) > 1 and a not in used)
        parts = math.prod(mesh[a] for a in chosen)
        if size % parts:
            log.debug("%s of size %d is not split over %s (%d)", name, size, chosen, parts)
            chosen = ()
        used.update(chosen)
        spec.append(chosen[0] if len(chosen) == 1 else chosen or None)
    return PartitionSpec(*spec)


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

    @property
    def host(self) -> tuple[int, int]:
        """(index, count): this process holds the index-th of count equal blocks of a batch's rows.

        It follows from the mesh: processes whose devices share rows load the same ones. Raises
        ValueError where a process's rows are not one block.
        """
        parts = math.prod(self._sizes[a] for a in self._batch_axes())
        where = self.sharding(("batch",), (parts,))
        held = where.addressable_devices_indices_map((parts,)).values()
        rows = sorted({i for (part,) in held for i in range(*part.indices(parts))})
        first, count = rows[0], len(rows)
        if rows[-1] - first + 1 != count or first % count:
            raise ValueError(
                f"sharding {self.strategy.name}: process {jax.process_index()} would hold parts "
                f"{rows} of {parts} of a batch, expected one block; put the data axes first"
            )
        return first // count, parts // count

    def _batch_axes(self) -> tuple[str, ...]:
        axes = dict(self.strategy.rules).get("batch", ())
        axes = (axes,) if isinstance(axes, str) else axes
        return tuple(a for a in axes if a in self._sizes)

    def constrain(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        """For ``nn.layers.constraining``: names of an activation become a constraint."""
        return jax.lax.with_sharding_constraint(x, self.sharding(axes, x.shape))
