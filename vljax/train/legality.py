"""Whether a model and its batches fit on a mesh: told in one sentence before anything compiles.

A strategy promises to split the batch, the language model's sequence, and its width, heads and MLP
over its axes. What else it would split (tables of odd vocabularies, 257 patches, the Q-Formers' 12
heads) stays whole where it does not divide; that costs memory and is no error.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vljax.sharding.mesh import Sizes, mesh_sizes, meshes
from vljax.sharding.strategy import STRATEGIES, Strategy
from vljax.train.step import Problem

log = logging.getLogger(__name__)


class Extent(NamedTuple):
    """A dimension by its logical axis, and what it is called in a message."""

    axis: str
    size: int
    words: str


def require_legal(
    problem: Problem,
    strategy: Strategy,
    devices: int,
    *,
    slices: int = 1,
    batch_sizes: Mapping[str, int] | None = None,
    lengths: Sequence[int] = (),
) -> Sizes:
    """The mesh of a strategy on so many devices. Raises ValueError where the problem does not fit.

    Args:
      slices: of the machine, see ``sharding.mesh.by_slice``.
      batch_sizes: the global batch of each source, before it is cut into microbatches.
      lengths: the numbers of tokens that a row may have.
    """
    _require_rows(problem, batch_sizes or {})
    extents = promised(problem, batch_sizes or {}, lengths)
    try:
        sizes = mesh_sizes(strategy, devices, slices)
        wrong = misfits(strategy, sizes, extents, slices)
    except ValueError as error:
        wrong = [str(error).removeprefix(f"sharding {strategy.name}: ")]
    if wrong:
        hint = f"legal here: {', '.join(alternatives(strategy, devices, extents, slices))}"
        raise ValueError(
            f"sharding {strategy.name} on {devices} devices: {' and '.join(wrong)}; {hint}"
        )
    vocab = problem.size.llama.vocab
    for told in misfits(strategy, sizes, [Extent("vocab", vocab, f"the vocabulary of {vocab}")]):
        log.warning("%s, whose tables each device holds whole", told)
    return sizes


def promised(
    problem: Problem, batch_sizes: Mapping[str, int], lengths: Sequence[int] = ()
) -> list[Extent]:
    """What must divide."""
    llama, name = problem.size.llama, problem.size.name
    parts = f" in {problem.accumulate} parts" if problem.accumulate > 1 else ""
    rows = [
        Extent("batch", size // problem.accumulate, f"source {source}'s batch of {size}{parts}")
        for source, size in batch_sizes.items()
    ]
    return [
        *rows,
        Extent("heads", llama.heads, f"{llama.heads} heads of {name}'s LLM"),
        Extent("kv_heads", llama.kv_heads, f"its {llama.kv_heads} heads of keys and values"),
        Extent("mlp", llama.mlp, f"its MLP's {llama.mlp}"),
        Extent("embed", llama.width, f"its width of {llama.width}"),
        *(Extent("act_seq", n, f"rows of {n} tokens") for n in lengths),
    ]


def misfits(
    strategy: Strategy, sizes: Sizes, extents: Sequence[Extent], slices: int = 1
) -> list[str]:
    """What the mesh does not divide, in words."""
    rules, wrong = dict(strategy.rules), []
    if sizes.get("data", slices) % slices:
        wrong.append(f"data={sizes['data']} is no multiple of the {slices} slices")
    for extent in extents:
        wanted = rules.get(extent.axis, ())
        over = [a for a in ((wanted,) if isinstance(wanted, str) else wanted) if sizes[a] > 1]
        if extent.size % math.prod(sizes[a] for a in over):
            mesh = " x ".join(f"{a}={sizes[a]}" for a in over)
            wrong.append(f"{mesh} does not divide {extent.words}")
    return wrong


def alternatives(
    strategy: Strategy, devices: int, extents: Sequence[Extent], slices: int
) -> list[str]:
    """The nearest legal meshes; of other strategies if this one has none; or what to do instead."""
    others = [s for s in STRATEGIES.values() if s.name != strategy.base]
    return (
        nearest(strategy, devices, extents, slices)
        or [name for other in others for name in nearest(other, devices, extents, slices, 1)]
        or ["nothing, so use fewer devices, or batches that they divide"]
    )


def nearest(
    strategy: Strategy, devices: int, extents: Sequence[Extent], slices: int = 1, most: int = 3
) -> list[str]:
    """The legal meshes of a strategy that are most like its own, as it is to be written."""
    wanted = {axis: size for axis, size in strategy.mesh if size > 0}

    def distance(sizes: Sizes) -> float:
        return sum(abs(math.log2(sizes[axis] / size)) for axis, size in wanted.items())

    legal = [s for s in meshes(strategy, devices) if not misfits(strategy, s, extents, slices)]
    legal.sort(key=lambda sizes: (distance(sizes), sizes.get("data", 1)))
    cut = f":slices={slices}" if strategy.slices else ""
    return [
        strategy.base + "".join(f":{a}={n}" for a, n in sizes.items()) + cut
        for sizes in legal[:most]
    ]


def _require_rows(problem: Problem, batch_sizes: Mapping[str, int]) -> None:
    for source, size in batch_sizes.items():
        rows, rest = divmod(size, problem.accumulate)
        if rest or rows < problem.objective.fewest:
            raise ValueError(
                f"accumulate: got {problem.accumulate}, expected a divisor of source {source}'s "
                f"batch of {size} that leaves at least {problem.objective.fewest} rows"
            )
