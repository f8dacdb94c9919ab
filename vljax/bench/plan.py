"""Which strategy fits which machine, and what a step costs there at least: one row a candidate.

A row is a dict that JSON takes. Facts of the compiler (memory, collectives) and of the jaxpr
(FLOPs) are kept on disk by the hash of the lowered program; bounds on time are made from them anew,
by the rates of ``sharding.chips``.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from jax.sharding import Mesh

from vljax.bench.compile import Program, abstract_batch, compile_step, lower_step
from vljax.bench.hlo import Collective
from vljax.bench.roofline import Bound, bound
from vljax.bench.topology import Topology, describe
from vljax.sharding.strategy import strategy
from vljax.train.optimizer import OptimizerConfig
from vljax.train.step import Problem

Row = dict[str, Any]
P = TypeVar("P", bound=Program)
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A strategy on a topology, with so many clips a device of so many frames and tokens."""

    topology: str
    strategy: str
    batch: int
    frames: int
    length: int


def candidates(
    topologies: Sequence[str], strategies: Sequence[str], batch: int, frames: int, length: int
) -> list[Candidate]:
    """Every strategy on every topology."""
    return [Candidate(t, s, batch, frames, length) for t in topologies for s in strategies]


def plan(
    problem: Problem,
    optimizer: OptimizerConfig,
    wanted: Sequence[Candidate],
    cache: Path,
    show: Callable[[int, int], None] = lambda done, total: None,
    most: int = 0,
) -> list[Row]:
    """A row each, the fastest that fits first; those that do not fit come last, with the reason.

    Each is compiled in a process of its own, so that its memory can be told; what was compiled
    before is read from ``cache``, so that a search that was stopped goes on. ``most``: up to how
    many clips a device the largest batch that fits is looked for, instead of the candidate's own.
    """
    rows = []
    for done, candidate in enumerate(wanted):
        show(done, len(wanted))
        one = functools.partial(apart, row, problem, optimizer, cache=cache)
        rows.append(largest_batch(one, candidate, most) if most else one(candidate))
    show(len(wanted), len(wanted))
    return ranked(rows)


def largest_batch(compiled: Callable[[Candidate], Row], candidate: Candidate, most: int) -> Row:
    """The row of the most clips a device that fit: doubled until too many, then halved between.

    Stops where the next try would differ by less than a quarter. Without any, the row of one clip.
    """
    tried: dict[int, Row] = {}

    def fits(batch: int) -> bool:
        tried[batch] = compiled(dataclasses.replace(candidate, batch=batch))
        return tried[batch]["fits"]

    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    while low and high <= most and high - low > max(low // 4, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return tried[max(low, 1)]


def apart(make: Callable[..., Row], *args: Any, **kwargs: Any) -> Row:
    """``make(*args, **kwargs)`` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(make, *args, **kwargs).result()


def row(problem: Problem, optimizer: OptimizerConfig, candidate: Candidate, cache: Path) -> Row:
    """What is known of a candidate. One that can't be is a row too, with the reason."""
    topology = describe(candidate.topology)
    identity = dataclasses.asdict(candidate) | {"backend": topology.backend}
    rows = candidate.batch * len(topology.devices)
    batch = abstract_batch(problem, rows, candidate.frames, candidate.length)
    try:
        lowered = lower_step(problem, optimizer, strategy(candidate.strategy), topology, batch)
    except ValueError as error:
        return _named(identity) | {"mesh": {}, "fits": False, "reason": str(error)}
    facts = cached(lowered, topology, cache, compile_step)
    return _named(identity) | facts | _judged(topology, lowered.mesh, facts, rows)


def _named(identity: Mapping[str, Any]) -> Row:
    renamed = {"batch": "batch_per_device", "length": "tokens_per_row"}
    return {renamed.get(name, name): value for name, value in identity.items()}


def cached(
    lowered: P, topology: Topology, cache: Path, compiled: Callable[[P, Topology], Row]
) -> Row:
    """What ``compiled`` says of a program, from the disk if it has been asked before."""
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    told = "\n".join([topology.name, *versions, lowered.text])
    path = cache / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"
    if path.is_file():
        return json.loads(path.read_text())
    facts = compiled(lowered, topology)
    cache.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".partial")
    half.write_text(json.dumps(facts))
    half.rename(path)
    return facts


def _judged(topology: Topology, mesh: Mesh, facts: Row, rows: int) -> Row:
    """Whether it fits, and the bounds: by the chip's figures."""
    chip, hbm = topology.chip, facts["hbm_gib"]
    limit = chip.memory / GIB if chip else None
    reason = facts["reason"]
    if not reason and limit is not None and hbm["peak"] > limit:
        reason = f"needs {hbm['peak']:.2f} GiB of {limit:.2f} GiB"
    judged: Row = {"fits": not reason, "reason": reason, "hbm_gib": hbm | {"limit": limit}}
    if chip is None or facts["reason"]:
        return judged | {"bound_s": None}
    found = [Collective(**c) for c in facts["collectives"]]
    # Every argument is read at least once.
    limits = bound(topology, mesh, facts["flops_per_device"], hbm["arguments"] * GIB, found)
    return judged | {"bound_s": _seconds(limits), "at_best": _rates(limits, facts, topology, rows)}


def _seconds(limits: Bound) -> dict[str, Any]:
    return {
        "compute": limits.compute,
        "hbm": limits.memory,
        "ici": limits.ici,
        "ici_by_axis": limits.axes,
        "dcn": limits.network,
        "low": limits.low,
        "high": limits.high,
    }


def _rates(limits: Bound, facts: Row, topology: Topology, rows: int) -> dict[str, float]:
    """What a step of ``limits.low`` seconds would mean: not measured, and never reached."""
    assert topology.chip is not None
    return {
        "clips_per_s": rows / limits.low,
        "mfu": facts["flops_per_device_once"] / topology.chip.flops / limits.low,
    }


def ranked(rows: Iterable[Row]) -> list[Row]:
    """By clips a second at best, then at worst; what has no bound keeps its order behind."""

    def key(row: Row) -> tuple[bool, float, float]:
        best = (row.get("at_best") or {}).get("clips_per_s", 0.0)
        worst = row["bound_s"]["high"] if row.get("bound_s") else 0.0
        return not row["fits"], -best, worst

    return sorted(rows, key=key)


def answer(rows: Sequence[Row]) -> str:
    """The answer first: what to use, the next best and why it is slower."""
    fitting = [r for r in rows if r["fits"]]
    if not fitting:
        reasons = "; ".join(f"{r['topology']} {r['strategy']}: {r['reason']}" for r in rows[:3])
        return f"Nothing fits. {reasons}"
    best, *others = fitting
    text = (
        f"Use {best['strategy']} on {best['topology']}, {best['batch_per_device']} clips a device"
    )
    if best.get("bound_s"):
        text += f": at least {best['bound_s']['low']:.3g} s a step, limited by {limiting(best)}"
    if others and others[0].get("at_best") and best.get("at_best"):
        ratio = best["at_best"]["clips_per_s"] / others[0]["at_best"]["clips_per_s"] - 1
        text += (
            f". Next best: {others[0]['strategy']} on {others[0]['topology']}, {ratio:.0%} slower "
            f"at best, limited by {limiting(others[0])}"
        )
    return text + "."


def limiting(row: Row) -> str:
    """The longest term of a row's bound, in words."""
    terms = {
        "compute": "compute",
        "hbm": "reading its arguments",
        "ici": "collectives inside a slice",
        "dcn": "the network between slices",
    }
    return terms[max(terms, key=lambda name: row["bound_s"][name])]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown. Times are bounds, not measured."""
    head = (
        "| topology | strategy | mesh | clips/device | fits | args / temp / peak GiB (of) "
        "| compute / ICI / network s | step at least, at most s (not measured) | compiled in |"
    )
    lines = [head, "|" + "---|" * 9]
    for r in rows:
        mesh = " × ".join(f"{a} {n}" for a, n in r["mesh"].items() if n > 1) or "–"
        hbm, limits = r.get("hbm_gib"), r.get("bound_s")
        memory = "–"
        if hbm and hbm["peak"] is not None:
            limit = f" ({hbm['limit']:.1f})" if hbm["limit"] else ""
            sizes = (hbm[n] for n in ("arguments", "temporaries", "peak"))
            memory = " / ".join(f"{x:.2f}" for x in sizes) + limit
        terms = " / ".join(f"{limits[n]:.3f}" for n in ("compute", "ici", "dcn")) if limits else "–"
        span = f"{limits['low']:.3f} – {limits['high']:.3f}" if limits else "–"
        fits = "yes" if r["fits"] else f"no: {r['reason']}"
        took = f"{r['compile_s']:.0f} s" if "compile_s" in r else "–"
        cells = (
            r["topology"],
            r["strategy"],
            mesh,
            str(r["batch_per_device"]),
            fits,
            memory,
            terms,
        )
        lines.append("| " + " | ".join((*cells, span, took)) + " |")
    return "\n".join(lines)
