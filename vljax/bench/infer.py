"""Whether a model that answers fits a machine, and how fast it can be at best: one row a candidate.

A row is a dict that JSON takes. What is held at once is all weights, the cache, and the largest
temporaries of the programs that run in turn: see (and hear), prefill, decode. These are facts of
the compiled programs; times are bounds from the rates of ``sharding.chips``, not measured.
"""

import dataclasses
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vljax.bench.answering import Answering, Load, Model, programs, read_a_token
from vljax.bench.compile import GIB, Facts, ask_compiler
from vljax.bench.hlo import Collective
from vljax.bench.plan import Died, apart, cached
from vljax.bench.roofline import Bound, bound
from vljax.bench.search import Row
from vljax.bench.topology import Topology, describe
from vljax.models.precision import formats, weights_bytes
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import Tree
from vljax.train.legality import require_legal
from vljax.train.step import Problem

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # others are of the LLM's weights alone
INTEGERS = ("int8", "int4")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model in a dtype on a topology, split by a strategy, under a load."""

    topology: str
    strategy: str
    dtype: str
    load: Load
    quantise_vit: str = ""

    def model(self, problem: Problem, hears: bool) -> Model:
        """Raises ValueError for a dtype that is none of a language model's."""
        if self.dtype not in (*DTYPES, *INTEGERS):
            raise ValueError(
                f"--dtype: got {self.dtype!r}, expected some of {', '.join((*DTYPES, *INTEGERS))}"
            )
        integers = self.dtype if self.dtype in INTEGERS else ""
        held = formats(integers, self.quantise_vit)
        return Model(problem.size, DTYPES.get(self.dtype, jnp.bfloat16), held, hears=hears)


def candidates(
    topologies: Sequence[Topology],
    strategies: Sequence[str],
    dtypes: Sequence[str],
    loads: Sequence[Load],
    quantise_vit: str = "",
) -> list[Candidate]:
    """Every combination; on a single device all strategies are the same, so the first is taken."""
    return [
        Candidate(t.name, s, d, load, quantise_vit)
        for t in topologies
        for s in (strategies if len(t.devices) > 1 else strategies[:1])
        for load in loads
        for d in dtypes
    ]


def plan(
    problem: Problem,
    hears: bool,
    wanted: Sequence[Candidate],
    cache: Path,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """A row each, in order, each made in a process of its own; see ``bench.plan``."""
    for candidate in wanted:
        candidate.model(problem, hears)  # a name that is none is told before anything is compiled
    rows = []
    for done, candidate in enumerate(wanted):
        show(done, len(wanted))
        try:
            rows.append(apart(row, problem, hears, candidate, cache))
        except Died as error:
            topology = describe(candidate.topology)
            rows.append(identity(candidate, topology) | refusal(str(error)))
    show(len(wanted), len(wanted))
    return rows


def identity(candidate: Candidate, topology: Topology) -> Row:
    """How a row begins: what was asked for."""
    told = dataclasses.asdict(candidate)
    return {"backend": topology.backend} | told.pop("load") | told


def refusal(reason: str) -> Row:
    """How the row ends of one that is not legal, or that nothing could be found out about."""
    return {"mesh": {}, "fits": False, "reason": reason}


def row(problem: Problem, hears: bool, candidate: Candidate, cache: Path) -> Row:
    """What is known of a candidate. One that can't be is a row too, with the reason."""
    topology = describe(candidate.topology)
    known = identity(candidate, topology)
    model, how = candidate.model(problem, hears), strategy(candidate.strategy)
    try:
        require_legal(problem, how, len(topology.devices), slices=topology.slices)
        placement = Placement(how, make_mesh(how, topology.devices))
        weights = model.weights(placement)
        lowered = programs(model, weights, placement, candidate.load)
    except ValueError as error:
        return known | refusal(str(error))
    held = held_gib(weights, lowered)
    known |= {"mesh": dict(placement.mesh.shape)}
    reason = too_small(held, topology)
    if reason:  # whatever the compiler would say
        return known | {"fits": False, "reason": reason, "gib": held}
    try:
        facts = {name: cached(p, topology, cache, compile_program) for name, p in lowered.items()}
    except (
        jax.errors.JaxRuntimeError
    ) as error:  # a fault of the compiler's, that others may not have
        reason = f"nobody knows, the compiler failed: {str(error).splitlines()[0]}"
        return known | {"fits": False, "reason": reason, "gib": held}
    token = read_a_token(model, weights, lowered["decode"])
    return known | judged(topology, placement, held, facts, token, candidate.load)


def compile_program(program: Answering, topology: Topology) -> Facts:
    """What the compiler says of one, as JSON takes it."""
    began = time.monotonic()
    told = ask_compiler(program, topology, whole=False)[1]
    return told | {
        "parts_gib": {name: size / GIB for name, size in program.parts.items()},
        "flops_per_device": program.flops / program.mesh.size,
        "compile_s": time.monotonic() - began,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def held_gib(weights: Tree, lowered: Mapping[str, Answering]) -> dict[str, float]:
    """GiB a device of what stays while answering: the language model, the towers, the cache."""
    sizes = weights_bytes(weights)
    llm = sizes.pop("llama")
    held = {"llm": llm, "towers": sum(sizes.values()), "cache": lowered["decode"].parts["cache"]}
    return {name: size / GIB for name, size in held.items()}


def too_small(held: Mapping[str, float], topology: Topology) -> str:
    """Why what stays does not fit by itself; "" if it does, or if nobody knows the memory."""
    needed, limit = sum(held.values()), _limit(topology)
    if limit is None or needed <= limit:
        return ""
    return f"weights and cache alone take {needed:.2f} of {limit:.2f} GiB"


def _limit(topology: Topology) -> float | None:
    return topology.chip.memory / GIB if topology.chip else None


def judged(
    topology: Topology,
    placement: Placement,
    held: dict[str, float],
    facts: Mapping[str, Facts],
    token: int,
    load: Load,
) -> Row:
    """Whether all of it fits at once, and the bounds. ``token``: see ``read_a_token``."""
    limit = _limit(topology)
    known: Row = {"gib": held | {"limit": limit}, "programs": dict(facts)}
    known["bytes_per_token"] = token
    refused = {name: f["reason"] for name, f in facts.items() if f["reason"]}
    if refused:
        reason = "; ".join(f"{name} {why}" for name, why in refused.items())
        return known | {"fits": False, "reason": reason}
    known["gib"] |= working_gib(held, facts)
    needed = known["gib"]["total"]
    if limit is not None and needed > limit:
        known["reason"] = f"needs {needed:.2f} of {limit:.2f} GiB"
    fits = not known.setdefault("reason", "")
    return known | {"fits": fits} | _bounds(topology, placement, facts, token, load)


def working_gib(held: Mapping[str, float], facts: Mapping[str, Facts]) -> dict[str, float]:
    """What comes on top of what stays, and all together.

    ``padding``: how much larger than its arrays the compiler lays the language model and the cache.
    """
    laid, parts = facts["decode"]["hbm_gib"]["arguments"], facts["decode"]["parts_gib"]
    padding = max(laid - sum(parts.values()), 0.0)
    made = {"prefill": held["cache"]}  # its result; to decode it is an argument
    temporaries = {
        name: f["hbm_gib"]["peak"] - f["hbm_gib"]["arguments"] - made.get(name, 0.0)
        for name, f in facts.items()
    }
    largest = max(temporaries.values())
    total = sum(held.values()) + padding + largest
    return {"padding": padding, "temporaries": largest, "total": total}


def _bounds(
    topology: Topology,
    placement: Placement,
    facts: Mapping[str, Facts],
    token: int,
    load: Load,
) -> Row:
    """Seconds at least of each program, and what they mean at best; None without stated rates."""
    if topology.chip is None:
        return {"bound_s": None, "at_best": None}

    def limits(name: str, touched: float) -> Bound:
        found = [Collective(**c) for c in facts[name]["collectives"]]
        return bound(topology, placement.mesh, facts[name]["flops_per_device"], touched, found)

    # Of the others every argument is read at least once.
    seconds = {
        name: limits(name, f["hbm_gib"]["arguments"] * GIB).low
        for name, f in facts.items()
        if name != "decode"
    }
    one = limits("decode", token)
    waits = (
        one.ici + one.network
    )  # the next layer needs what they bring, so that nothing hides them
    terms = {"compute": one.compute, "memory": one.memory, "collectives": waits}
    seconds["decode"] = max(one.compute, one.memory) + waits
    first = sum(s for name, s in seconds.items() if name != "decode")
    return {
        "bound_s": seconds | {"decode_terms": terms},
        "at_best": {"tokens_per_s": load.batch / seconds["decode"], "first_token_s": first},
    }


def answer(rows: Sequence[Row], name: str) -> str:
    """A sentence for each topology and load: in what it fits, and how fast it is there at best."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for r in rows:
        groups.setdefault((r["topology"], r["batch"], r["context"], r["new_tokens"]), []).append(r)
    return "\n".join(
        f"{name} on {topology}, batch {batch}, {context} + {new} tokens: "
        + "; ".join(_told(of_dtype) for of_dtype in _by_dtype(group))
        + "."
        for (topology, batch, context, new), group in groups.items()
    )


def _by_dtype(rows: Sequence[Row]) -> list[list[Row]]:
    return [[r for r in rows if r["dtype"] == d] for d in dict.fromkeys(r["dtype"] for r in rows)]


def _told(rows: Sequence[Row]) -> str:
    """Of one dtype, by all strategies: the fastest that fits, else why none does."""
    fitting = [r for r in rows if r["fits"]]
    if not fitting:
        return f"{rows[0]['dtype']} does not fit: {rows[0]['reason']}"
    best = max(fitting, key=lambda r: (r["at_best"] or {}).get("tokens_per_s", 0.0))
    by = f" by {best['strategy']}" if max(best["mesh"].values()) > 1 else ""
    gib, rates = best["gib"], best["at_best"]
    of = f" of {gib['limit']:.1f}" if gib["limit"] else ""
    fast = f", at most {rates['tokens_per_s']:.3g} tokens/s" if rates else ""
    return f"{best['dtype']} fits{by}, {gib['total']:.1f}{of} GiB{fast}"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown. Times are bounds, not measured."""
    head = (
        "| topology | strategy | LLM in | batch | context + new | fits | LLM / towers / cache / "
        "temporaries = GiB (of) | see and hear / prefill s, at least | ms a token at least: "
        "compute / memory / collectives | tokens/s at most (not measured) |"
    )
    lines = [head, "|" + "---|" * 10]
    for r in rows:
        cells = [r["topology"], r["strategy"], r["dtype"], str(r["batch"])]
        cells += [f"{r['context']} + {r['new_tokens']}"]
        cells += ["yes" if r["fits"] else f"no: {r['reason']}", _memory(r.get("gib"))]
        lines.append("| " + " | ".join([*cells, *_times(r)]) + " |")
    return "\n".join(lines)


def _memory(gib: Mapping[str, float] | None) -> str:
    if not gib:
        return "–"
    parts = [f"{gib[n]:.2f}" for n in ("llm", "towers", "cache")]
    if "total" not in gib:
        return " / ".join([*parts, "–"])
    limit = f" ({gib['limit']:.2f})" if gib["limit"] else ""
    above = gib["padding"] + gib["temporaries"]
    return " / ".join([*parts, f"{above:.2f}"]) + f" = {gib['total']:.2f}{limit}"


def _times(r: Row) -> list[str]:
    limits, rates = r.get("bound_s"), r.get("at_best")
    if not limits or not rates:
        return ["–", "–", "–"]
    senses = rates["first_token_s"] - limits["prefill"]
    terms = (limits["decode_terms"][n] * 1e3 for n in ("compute", "memory", "collectives"))
    return [
        f"{senses:.3f} / {limits['prefill']:.3f}",
        " / ".join(f"{ms:.2f}" for ms in terms),
        f"{rates['tokens_per_s']:.3g}",
    ]
