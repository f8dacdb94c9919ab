"""Every strategy's real step on the devices at hand: what was predicted of it, and what it took.

A row is the plan's of the same program with ``predicted_s`` and ``measured`` added, both None where
nothing ran.
"""

import contextlib
import dataclasses
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax

from vljax.bench.compile import compiled_step
from vljax.bench.contender import Contender, Turn, Weights, empty_collective
from vljax.bench.plan import GIB, Planned, identity, judged, lower, refused
from vljax.bench.search import Candidate, Row
from vljax.bench.topology import Topology, at_hand, describe
from vljax.sharding.chips import chip_of
from vljax.sharding.mesh import by_slice, mesh_sizes
from vljax.sharding.strategy import STRATEGIES, strategy
from vljax.train.legality import nearest, promised

Show = Callable[[str, int, int], None]  # what is done, how many of how many
VIRTUAL = 8  # devices of a CPU
NOTHING: Row = {"same_as": "", "predicted_s": None, "measured": None}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Batches in clips a device, each of so many frames and tokens; ``steps`` are timed of each."""

    batches: Sequence[int]
    frames: int
    length: int
    steps: int


def everything(
    run: Planned, names: Sequence[str], shape: Shape, devices: int, show: Show
) -> list[Row]:
    """The rows of all strategies (without ``names``: of every one) and batches.

    On so many virtual ``devices`` of the CPU; if 0, on the accelerators that are here, else on 8.
    This process leaves accelerators alone. Raises ValueError.
    """
    if "tokens" not in run.problem.objective.batch(run.problem.size):
        raise ValueError(
            "--config: got a stage without words, expected a stage with tokens: of vision, audio "
            "or text"
        )
    platform, count, kind = ("cpu", devices, "") if devices else alone(found_devices)
    jax.config.update("jax_platforms", "cpu")
    devices = devices or (VIRTUAL if platform == "cpu" else count)
    topology = dataclasses.replace(describe(f"cpu:{devices}"), here=True)
    name = topology.name if platform == "cpu" else f"{kind}:{devices}"
    names = names or every_strategy(run, topology, min(shape.batches), shape.length)
    same = twins(names, topology)
    wanted = [
        Candidate(name, s, b, shape.frames, shape.length) for s in names for b in shape.batches
    ]
    run_them = [c for c in wanted if c.strategy not in same]
    if platform == "cpu":
        rows = measure(run, run_them, topology, shape.steps, show)
    else:
        rows = measure_apart(run, run_them, shape.steps, show)
    found = dict(zip(run_them, rows, strict=True))
    return [found.get(c) or twin(c, same[c.strategy], topology) for c in wanted]


def every_strategy(run: Planned, topology: Topology, batch: int, length: int) -> list[str]:
    """All names; behind one that does not fit on the devices its nearest mesh that does."""
    devices = len(topology.devices)
    extents = promised(run.problem, {"all": batch * devices}, (length,))
    found: dict[Any, str] = {}
    for name, one in STRATEGIES.items():
        legal = {_essence(n, topology): n for n in nearest(one, devices, extents, topology.slices)}
        own = _essence(name, topology)
        found[name if own in found else own] = name
        if legal and own not in legal:
            found.setdefault(*next(iter(legal.items())))
    return list(found.values())


def twins(names: Sequence[str], topology: Topology) -> dict[str, str]:
    """Strategies that are an earlier one of ``names`` on these devices, and which."""
    first: dict[Any, str] = {}
    for name in names:
        first.setdefault(_essence(name, topology), name)
    return {n: first[_essence(n, topology)] for n in names if first[_essence(n, topology)] != n}


def _essence(name: str, topology: Topology) -> Any:
    """What a strategy does where axes of one device do nothing; its name if it has no mesh."""
    wanted = strategy(name)
    try:
        groups = by_slice(wanted, topology.devices)
        sizes = mesh_sizes(wanted, len(topology.devices), len(groups))
    except ValueError:
        return name
    real = [axis for axis, size in sizes.items() if size > 1]
    rules = {
        logical: tuple(
            real.index(a) for a in ((axes,) if isinstance(axes, str) else axes) if a in real
        )
        for logical, axes in wanted.rules
    }
    return tuple(sizes[a] for a in real), tuple(sorted(r for r in rules.items() if r[1]))


def measure(
    run: Planned, wanted: Sequence[Candidate], topology: Topology, steps: int, show: Show
) -> list[Row]:
    """A row each, in their order. All are compiled; then they take turns, ``steps`` times.

    A neighbour that comes and goes then disturbs all alike. Weights of a strategy are held once.
    """
    weights: dict[str, Weights] = {}
    ready: list[tuple[Row, Contender | None, list[Turn]]] = []
    for done, candidate in enumerate(wanted):
        show("programs compiled", done, len(wanted))
        row, contender = _ready(run, candidate, topology, weights)
        ready.append((row, contender, []))
    show("programs compiled", len(wanted), len(wanted))
    for turn in range(steps + 1):
        show("rounds of steps", turn, steps + 1)
        for row, contender, turns in ready:
            with _room(row):
                if contender and row["fits"]:
                    turns.append(contender.step())
    show("rounds of steps", steps + 1, steps + 1)
    collective = empty_collective(topology.devices) if topology.backend == "cpu" else Turn(0, 0)
    return [
        row | {"measured": _summary(contender, turns[1:], collective, topology)}
        if len(turns) > steps
        else row
        for row, contender, turns in ready
    ]


def measure_apart(run: Planned, wanted: Sequence[Candidate], steps: int, show: Show) -> list[Row]:
    """The same, each row in a process of its own, after one another.

    So each has an accelerator for itself, and the highest use of its memory is its own.
    """
    rows = []
    for done, candidate in enumerate(wanted):
        show("rows", done, len(wanted))
        rows.append(alone(_measure_one, run, candidate, steps))
    show("rows", len(wanted), len(wanted))
    return rows


def alone(call: Callable, *arguments: Any) -> Any:
    """What ``call`` returns in a fresh process, which gives back all it took."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def found_devices() -> tuple[str, int, str]:
    """(platform, how many, of which kind)."""
    kind = jax.devices()[0].device_kind
    chip = chip_of(kind)
    return jax.default_backend(), jax.device_count(), chip.name if chip else kind


def twin(candidate: Candidate, other: str, topology: Topology) -> Row:
    """The row of a strategy that is another one on these devices, so that it is not measured."""
    wanted = strategy(candidate.strategy)
    groups = len(by_slice(wanted, topology.devices))
    mesh = mesh_sizes(wanted, len(topology.devices), groups)
    facts = {"mesh": mesh, "fits": True, "reason": "", "bound_s": None}
    return identity(candidate, topology) | facts | NOTHING | {"same_as": other}


def _measure_one(run: Planned, candidate: Candidate, steps: int) -> Row:
    return measure(run, [candidate], at_hand(), steps, lambda *_: None)[0]


def _ready(
    run: Planned, candidate: Candidate, topology: Topology, weights: dict[str, Weights]
) -> tuple[Row, Contender | None]:
    try:
        lowered = lower(run, candidate, topology)
    except ValueError as error:
        return refused(candidate, topology, str(error)) | NOTHING, None
    try:
        program, facts = compiled_step(lowered, topology)
    except jax.errors.JaxRuntimeError as error:
        told = f"its compiler failed: {str(error).splitlines()[0]}"
        return refused(candidate, topology, told) | NOTHING, None
    row = identity(candidate, topology) | facts | judged(run, topology, lowered, facts) | NOTHING
    if not row["fits"]:
        return row, None
    key = f"{candidate.strategy} {candidate.variant}"
    with _room(row):
        weights[key] = weights.get(key) or Weights(lowered)
        return row, Contender(program, lowered, weights[key])
    return row, None


@contextlib.contextmanager
def _room(row: Row) -> Iterator[None]:
    """Where memory does not last the row does not fit, and has the reason."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = str(error).strip().splitlines()[0][:200]
        row |= {"fits": False, "reason": f"compiled, but memory did not last: {told}"}


def _summary(
    contender: Contender | None, turns: Sequence[Turn], collective: Turn, topology: Topology
) -> Row:
    assert contender is not None
    times, on_cpu = [t.seconds for t in turns], topology.backend == "cpu"
    cpu = statistics.median(t.cpu for t in turns)
    stats = [d.memory_stats() or {} for d in topology.devices]
    peak = max(s.get("peak_bytes_in_use", 0) for s in stats)
    median = statistics.median(times)
    return {
        "steps": len(turns),
        "median_s": median,
        "least_s": min(times),
        "most_s": max(times),
        "cpu_s": cpu,
        "work_s": cpu if on_cpu else median,
        "call_s": collective.seconds,
        "call_work_s": collective.cpu,
        "memory_gib": peak / GIB if peak else None,
        "collectives_s": contender.traced(),
    }
