"""What a plan tries: strategies, their meshes, batches, and ways to spend less memory or time."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from vljax.bench.topology import Topology
from vljax.models import precision
from vljax.nn.stack import REMAT
from vljax.sharding.strategy import strategy
from vljax.train.legality import nearest, promised
from vljax.train.step import Problem

Row = dict[str, Any]
MESHES = 4  # of a strategy, at most
KEPT = 2  # of a topology's rows, which the other policies are tried with
POLICIES = [name for name in REMAT if name != "offload"]  # which the CPU's compiler can't do
QUANTISED = "int8"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A strategy on a topology, with so many clips a device of so many frames and tokens.

    ``remat``, ``quantise``: instead of the problem's own, where not empty.
    """

    topology: str
    strategy: str
    batch: int
    frames: int
    length: int
    remat: str = ""
    quantise: str = ""

    @property
    def variant(self) -> str:
        """What it has of its own, in words."""
        remat = f"remat {self.remat}" if self.remat else ""
        return ", ".join(word for word in (remat, self.quantise) if word)

    def applied(self, problem: Problem) -> Problem:
        """The problem as this candidate changes it."""
        formats = problem.formats
        if self.quantise:
            vit = tuple(pair for pair in formats if pair[0] == precision.VIT)
            formats = precision.formats(self.quantise) + vit
        return dataclasses.replace(problem, remat=self.remat or problem.remat, formats=formats)


def factorised(
    wanted: Iterable[Candidate], problem: Problem, topology: Topology
) -> list[Candidate]:
    """Those of a topology with the legal meshes nearest to their strategy's own, each once.

    A strategy without a legal mesh stays as it is, to be refused with the reason.
    """
    devices = len(topology.devices)
    found: dict[Candidate, bool] = {}
    for candidate in wanted:
        rows = {"all": candidate.batch * devices}
        extents = promised(problem, rows, (candidate.length,))
        wish = strategy(candidate.strategy)
        for name in nearest(wish, devices, extents, topology.slices, MESHES) or [wish.name]:
            found[dataclasses.replace(candidate, strategy=name.replace(":data=1:", ":"))] = True
    return list(found)


def varied(rows: Iterable[Row], problem: Problem) -> list[Candidate]:
    """The first rows of each topology with every other policy of remat, and with int8 as well.

    ``rows``: best first.
    """
    kept: dict[str, list[Row]] = {}
    for row in rows:
        if len(kept.setdefault(row["topology"], [])) < KEPT and row["mesh"]:
            kept[row["topology"]].append(row)
    own = (problem.remat, "")
    ways = [(r, q) for r in POLICIES for q in ("", QUANTISED) if (r, q) != own]
    return [
        dataclasses.replace(candidate_of(row), remat=remat, quantise=quantise)
        for chosen in kept.values()
        for row in chosen
        for remat, quantise in ways
    ]


def candidate_of(row: Row) -> Candidate:
    """What a row was made of."""
    return Candidate(
        row["topology"],
        row["strategy"],
        row["batch_per_device"],
        row["frames"],
        row["tokens_per_row"],
        row["remat"],
        row["quantise"],
    )


def least_batch(problem: Problem) -> int:
    """Clips a device of which, and of whose multiples, each of a step's parts gets as many."""
    return problem.accumulate * problem.objective.fewest


def largest_batch(
    compiled: Callable[[Candidate], Row], candidate: Candidate, least: int, most: int
) -> Row:
    """The row of the most clips a device that fit: doubled until too many, then halved between.

    Tries multiples of ``least``; stops where the next would differ by less than a quarter. Without
    any that fits, the row of ``least``.
    """
    tried: dict[int, Row] = {}

    def fits(batch: int) -> bool:
        tried[batch] = compiled(dataclasses.replace(candidate, batch=batch))
        return tried[batch]["fits"]

    low, high = 0, least
    while high <= most and fits(high):
        low, high = high, high * 2
    while low and high <= most and high - low > max(low // 4, least):
        middle = (low + high) // 2 // least * least
        low, high = (middle, high) if fits(middle) else (low, middle)
    return tried[max(low, least)]
