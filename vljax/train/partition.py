"""Frozen and trainable as two trees."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from vljax.models.precision import array_bytes
from vljax.store import Tree, flatten, unflatten

SCALES = ("/kernel/scale", "/kernel/middle")  # of quantised kernels: bytes, but no parameters


class Row(NamedTuple):
    """One line of the table: a module's parameters of one kind."""

    module: str
    parameters: int
    bytes: int
    trainable: bool


def split(params: Tree, trainable: Sequence[str]) -> tuple[Tree, Tree]:
    """(trainable, frozen) by regexes that match a slash name from its start.

    Raises ValueError when a regex matches nothing: a misspelt one would freeze in silence.
    """
    flat = flatten(params)
    matched = {r: [n for n in flat if re.match(r, n)] for r in trainable}
    for regex, names in matched.items():
        if not names:
            modules = sorted({n.split("/")[0] for n in flat})
            raise ValueError(
                f"trainable: {regex!r} matches no parameter; there are {', '.join(modules)}"
            )
    chosen = {n for names in matched.values() for n in names}
    return (
        unflatten({n: x for n, x in flat.items() if n in chosen}),
        unflatten({n: x for n, x in flat.items() if n not in chosen}),
    )


def merge(trainable: Tree, frozen: Tree) -> Tree:
    """The exact inverse of ``split``."""
    return unflatten(flatten(frozen) | flatten(trainable))


def is_stacked(name: str) -> bool:
    """Whether the first axis of the parameter of this slash name counts layers."""
    return "/layers/" in name or "/groups/" in name


def unstack(tree: Tree) -> Tree:
    """Each stacked array as {"0": the first layer's, ...}; what is given is used up, one by one."""
    flat = {}
    for name, x in flatten(tree).items():
        if not is_stacked(name):
            flat[name] = x
            continue
        flat |= {f"{name}/{i}": x[i] for i in range(len(x))}
        x.delete()
    return unflatten(flat)


def restack(tree: Tree) -> Any:
    """The inverse of ``unstack``; in a traced function it moves nothing."""
    if "0" in tree:
        return jnp.stack([tree[str(i)] for i in range(len(tree))])
    return {name: restack(x) if isinstance(x, dict) else x for name, x in tree.items()}


def table(trainable: Tree, frozen: Tree) -> list[Row]:
    """Module, parameters, bytes, frozen or trainable; from arrays or abstract arrays."""
    rows = []
    for tree, train in ((trainable, True), (frozen, False)):
        groups: dict[str, list[tuple[int, int]]] = {}
        for name, leaf in flatten(tree).items():
            counted = 0 if name.endswith(SCALES) else math.prod(leaf.shape)
            groups.setdefault(_module(name), []).append((counted, array_bytes(leaf)))
        for module, sizes in groups.items():
            rows.append(Row(module, sum(n for n, _ in sizes), sum(b for _, b in sizes), train))
    return sorted(rows, key=lambda r: r.module)


def _module(name: str) -> str:
    """The first level, and the second where it is a tower of its own."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] in ("frame_encoder", "imagebind") else parts[0]


def format_table(rows: Sequence[Row]) -> str:
    """The table as text, with totals."""
    lines = [f"{'module':24} {'parameters':>16} {'MiB':>10}  "]
    for row in rows:
        kind = "trainable" if row.trainable else "frozen"
        lines.append(f"{row.module:24} {row.parameters:>16,} {row.bytes / 2**20:>10.1f}  {kind}")
    for kind, train in (("trainable", True), ("frozen", False)):
        chosen = [r for r in rows if r.trainable == train]
        count, size = sum(r.parameters for r in chosen), sum(r.bytes for r in chosen)
        lines.append(f"{'total':24} {count:>16,} {size / 2**20:>10.1f}  {kind}")
    return "\n".join(lines)
