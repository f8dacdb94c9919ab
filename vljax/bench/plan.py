"""Which strategy fits which machine, and what a step costs there at least: one row a candidate.

A row is a dict that JSON takes. Facts of the compiler (memory, collectives) and of the jaxpr
(FLOPs) are kept on disk by the hash of the lowered program; bounds on time are made from them anew,
by the rates of ``sharding.chips``.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import jax

from vljax.bench.compile import Lowered, Program, abstract_batch, compile_step, lower_step
from vljax.bench.hlo import Collective
from vljax.bench.quick import encoders, with_encoders, without_encoders
from vljax.bench.roofline import Bound, bound
from vljax.bench.search import Candidate, Row
from vljax.bench.topology import Topology, describe
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import write_whole
from vljax.train.optimizer import OptimizerConfig
from vljax.train.step import Problem

P = TypeVar("P", bound=Program)
GIB = 2**30
READ_BY = (
    "bench/answering.py",
    "bench/compile.py",
    "bench/hlo.py",
    "bench/hlo_work.py",
    "bench/infer.py",
    "bench/settled.py",
    "models/precision.py",
    "train/flops.py",
    "train/speed.py",
)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run to be planned; ``samples`` are the clips that it trains on in all.

    ``quick``: compiles it without its encoders, see ``bench.quick``.
    """

    problem: Problem
    optimizer: OptimizerConfig
    samples: int
    quick: bool = False


def plan(
    wanted: Sequence[Candidate],
    compiled: Callable[[Candidate], Row],
    show: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """A row each, the fastest that fits first; those that do not fit come last, with the reason.

    ``compiled``: ``row_apart``, with all else that it takes.
    """
    rows = []
    for done, candidate in enumerate(wanted):
        show(done, len(wanted))
        rows.append(compiled(candidate))
    show(len(wanted), len(wanted))
    return ranked(rows)


class Died(RuntimeError):
    """A process ended without an answer."""


def apart(make: Callable[..., Row], *args: Any, **kwargs: Any) -> Row:
    """``make(*args, **kwargs)`` in a process of its own, so that its memory can be told.

    The process is not waited for after its answer: a compiler may go on there, for nothing.
    Raises what it raised; Died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, make, args, kwargs), daemon=True)
    process.start()
    sender.close()  # so that a process that dies is the end of the pipe
    try:
        made, error = receiver.recv()
    except EOFError:
        process.join()
        raise Died(
            f"the process that compiles ended with exit code {process.exitcode} and no answer; "
            "-9 is mostly too little memory"
        ) from None
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise error
    return made


def _answer(sender: Connection, make: Callable[..., Row], args: Any, kwargs: Any) -> None:
    try:
        sender.send((make(*args, **kwargs), None))
    except Exception as error:
        sender.send((None, error))


def row_apart(run: Planned, cache: Path, candidate: Candidate) -> Row:
    """``row`` from a process of its own; where that died, which a compiler may, refused."""
    try:
        return apart(row, run, cache, candidate)
    except Died as error:
        return refused(candidate, describe(candidate.topology), str(error))


def row(run: Planned, cache: Path, candidate: Candidate) -> Row:
    """What is known of a candidate. One that can't be is a row too, with the reason.

    What was compiled before is read from ``cache``, so that a search that was stopped goes on.
    """
    topology = describe(candidate.topology)
    try:
        lowered = lower(run, candidate, topology)
    except ValueError as error:
        return refused(candidate, topology, str(error))
    try:
        facts = known(run, candidate, topology, lowered, cache)
    except jax.errors.JaxRuntimeError as error:
        told = f"its compiler failed: {str(error).splitlines()[0]}"
        return refused(candidate, topology, told)
    return identity(candidate, topology) | facts | judged(run, topology, lowered, facts)


def lower(run: Planned, candidate: Candidate, topology: Topology) -> Lowered:
    """Raises ValueError for a mesh that the problem does not fit on."""
    problem, rows = candidate.applied(run.problem), candidate.batch * len(topology.devices)
    problem = without_encoders(problem) if run.quick else problem
    batch = abstract_batch(problem, rows, candidate.frames, candidate.length)
    return lower_step(problem, run.optimizer, strategy(candidate.strategy), topology, batch)


def known(
    run: Planned, candidate: Candidate, topology: Topology, lowered: Lowered, cache: Path
) -> Row:
    """The facts of a step; if it was lowered without its encoders, with them."""
    if not run.quick:
        return cached(lowered, topology, cache, compile_step)
    problem, rows = candidate.applied(run.problem), candidate.batch * lowered.mesh.size
    batch = abstract_batch(problem, rows, candidate.frames, candidate.length)
    placement = Placement(strategy(candidate.strategy), lowered.mesh)
    with ThreadPoolExecutor(1) as pool:
        more = pool.submit(encoders, problem, placement, batch)  # while the compiler works
        facts = cached(lowered, topology, cache, compile_step)
    return with_encoders(facts, more.result()) | {"quick": True}


def refused(candidate: Candidate, topology: Topology, reason: str) -> Row:
    """The row of a candidate that is not legal, or that nothing could be found out about."""
    return identity(candidate, topology) | {"mesh": {}, "fits": False, "reason": reason}


def identity(candidate: Candidate, topology: Topology) -> Row:
    """How a row begins: what was asked for."""
    asked = dataclasses.asdict(candidate)
    asked |= {"variant": candidate.variant, "backend": topology.backend}
    renamed = {"batch": "batch_per_device", "length": "tokens_per_row"}
    return {renamed.get(name, name): value for name, value in asked.items()}


def cached(
    lowered: P, topology: Topology, cache: Path, compiled: Callable[[P, Topology], Row]
) -> Row:
    """What ``compiled`` says of a program, from the disk if it has been asked before."""
    flags = [os.environ.get(name, "") for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    compiler = [topology.name, *versions(topology.backend), *flags]
    told = "\n".join([*compiler, readers(), lowered.text])
    path = cache / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"
    if path.is_file():
        return json.loads(path.read_text())
    facts = compiled(lowered, topology)
    cache.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(facts))
    return facts


def versions(backend: str) -> list[str]:
    """Of all that a compiled program depends on, as far as it is installed."""
    compilers = {"tpu": ["libtpu"], "cuda": ["jax-cuda12-pjrt", "jax-cuda13-pjrt"]}
    found = []
    for name in ("jax", "jaxlib", *compilers.get(backend, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(importlib.metadata.version(name))
    return found


@functools.cache
def readers() -> str:
    """Of the code that facts come from: those it has found otherwise are not the same."""
    package = Path(__file__).parent.parent
    return hashlib.sha256(b"".join((package / file).read_bytes() for file in READ_BY)).hexdigest()


def judged(run: Planned, topology: Topology, lowered: Lowered, facts: Row) -> Row:
    """Whether it fits, and the bounds: by the chip's figures."""
    chip, hbm = topology.chip, facts["hbm_gib"]
    limit = chip.memory / GIB if chip else None
    reason = facts["reason"]
    if not reason and limit is not None and hbm["peak"] > limit:
        reason = f"needs {hbm['peak']:.2f} GiB of {limit:.2f} GiB"
    judged: Row = {"fits": not reason, "reason": reason, "hbm_gib": hbm | {"limit": limit}}
    if chip is None or topology.backend == "cpu" or facts["reason"]:
        return judged | {"bound_s": None, "at_best": None}
    found = [Collective(**c) for c in facts["collectives"]]
    flops, compiled = facts["flops_per_device"], facts["flops_compiled_per_device"]
    touched = hbm["arguments"] * GIB  # every argument is read at least once
    limits = bound(topology, lowered.mesh, flops, touched, found, compiled)
    best = _rates(limits, facts, topology, lowered.batch, run.samples)
    return judged | {"bound_s": _seconds(limits), "at_best": best}


def _seconds(limits: Bound) -> dict[str, Any]:
    return {
        "compute": limits.compute,
        "repeated": limits.repeated,
        "hbm": limits.memory,
        "ici": limits.ici,
        "ici_by_axis": limits.axes,
        "dcn": limits.network,
        "low": limits.low,
        "high": limits.high,
    }


def _rates(
    limits: Bound, facts: Row, topology: Topology, batch: Mapping[str, Any], samples: int
) -> dict[str, float]:
    """What a step of ``limits.low`` seconds would mean: not measured, and never reached."""
    assert topology.chip is not None
    rows = len(next(iter(batch.values())))
    tokens = batch["tokens"].size if "tokens" in batch else 0
    return {
        "clips_per_s": rows / limits.low,
        "tokens_per_s_per_device": tokens / len(topology.devices) / limits.low,
        "mfu": facts["flops_per_device_once"] / topology.chip.flops / limits.low,
        "chip_hours": samples / rows * limits.low / 3600 * topology.chips,
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
    text = f"Use {named(best)}, {best['batch_per_device']} clips a device"
    if best["bound_s"]:
        text += f": at least {best['bound_s']['low']:.3g} s a step, limited by {limiting(best)}"
    if others and others[0]["bound_s"] and best["bound_s"]:
        text += f". Next best: {named(others[0])}, {slower(others[0], best)}"
    return text + "."


def named(row: Row) -> str:
    """ "fsdp on v5e:4x4 with remat dots"."""
    variant = f" with {row['variant']}" if row["variant"] else ""
    return f"{row['strategy']} on {row['topology']}{variant}"


def slower(row: Row, best: Row) -> str:
    """By how much a clip takes longer, and by which term most."""

    def each(row: Row, term: str) -> float:
        return row["bound_s"][term] / (row["batch_per_device"] * math.prod(row["mesh"].values()))

    for span, words in (("low", "at best"), ("high", "if nothing overlaps")):
        ratio = each(row, span) / each(best, span) - 1
        if ratio > 0.005:
            most = max(TERMS, key=lambda term: each(row, term) - each(best, term))
            reason = limiting(row) if span == "low" else TERMS[most]
            return f"{ratio:.0%} slower {words}, because of {reason}"
    return "as fast"


TERMS = {
    "compute": "compute",
    "hbm": "reading its arguments",
    "ici": "collectives inside a slice",
    "dcn": "the network between slices",
}


def limiting(row: Row) -> str:
    """The longest term of a row's bound, in words."""
    return TERMS[max(TERMS, key=lambda name: row["bound_s"][name])]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown. Times are bounds, not measured."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    return "\n".join([*lines, *("| " + " | ".join(_cells(r)) + " |" for r in rows)])


_HEAD = (
    "topology",
    "strategy",
    "mesh",
    "clips/device",
    "fits",
    "args / temp / peak GiB (of)",
    "compute / HBM / ICI / network s",
    "step at least – at most s (not measured)",
    "clips/s, tokens/s/device, MFU at best",
    "chip-hours at least",
    "compiled in, with GiB",
)


def _cells(row: Row) -> tuple[str, ...]:
    hbm, limits, best = row.get("hbm_gib"), row.get("bound_s"), row.get("at_best")
    variant = f" ({row['variant']})" if row["variant"] else ""
    mesh = " × ".join(f"{a} {n}" for a, n in row["mesh"].items() if n > 1)
    sizes = [hbm[n] for n in ("arguments", "temporaries", "peak")] if hbm else []
    memory = " / ".join("–" if x is None else f"{x:.2f}" for x in sizes)
    if hbm and hbm["limit"]:
        memory += f" ({hbm['limit']:.1f})"
    terms = " / ".join(f"{limits[n]:.3f}" for n in TERMS) if limits else ""
    rates = ""
    if best:
        clips, tokens = best["clips_per_s"], best["tokens_per_s_per_device"]
        rates = f"{clips:.0f}, {tokens:.0f}, {best['mfu']:.0%}"
    cells = (
        row["topology"],
        row["strategy"] + variant,
        mesh,
        str(row["batch_per_device"]),
        "yes" if row["fits"] else f"no: {row['reason']}",
        memory,
        terms,
        f"{limits['low']:.3f} – {limits['high']:.3f}" if limits else "",
        rates,
        f"{best['chip_hours']:.0f}" if best else "",
        f"{row['compile_s']:.0f} s, {row['peak_rss_gib']:.1f}" if "compile_s" in row else "",
    )
    return tuple(cell or "–" for cell in cells)
