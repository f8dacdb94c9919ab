"""The one loop of every stage and branch; what differs between them is in the ``Run``."""

import collections
import contextlib
import dataclasses
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vljax import store
from vljax.sharding.mesh import by_slice, make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import Strategy
from vljax.store import Tree
from vljax.train import partition
from vljax.train.checkpoint import Checkpoints
from vljax.train.legality import require_legal
from vljax.train.metrics import plot_loss
from vljax.train.optimizer import OptimizerConfig, make_optimizer, schedule
from vljax.train.profiling import Profiler
from vljax.train.report import Pending, Report
from vljax.train.speed import Speed
from vljax.train.step import Problem, TrainState, make_state, make_train_step

HostBatch = dict[str, np.ndarray]
Batches = Callable[[int], Iterator[tuple[str, HostBatch]]]  # from a step on: (source, batch)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: a problem, how to minimise it, and where it starts and lives.

    ``start``: folders of weights, later ones over earlier ones; what they lack is initialised
    if it is trainable and an error if it is frozen. ``begin_as``: pairs of slash prefixes; what
    lies under the first begins as a copy of what the start weights hold under the second.
    ``batch_sizes`` of the sources, and ``lengths`` that a row's tokens may have: what is known of
    the batches before the first one, to be checked against the mesh.
    """

    name: str
    problem: Problem
    optimizer: OptimizerConfig
    strategy: Strategy
    steps: int
    workdir: Path
    start: tuple[str, ...] = ()
    begin_as: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    save_every: int = 1000
    log_every: int = 10
    batch_sizes: tuple[tuple[str, int], ...] = ()
    lengths: tuple[int, ...] = ()
    profile: tuple[int, int] | None = None  # from which step to which, where this command begins


def fit(run: Run, batches: Batches, manifest: dict[str, Any]) -> Path:
    """Trains to ``run.steps``, resuming from what is in its workdir; returns its weights' folder.

    Args:
      batches: gives the pairs of source name and batch that follow a step.
      manifest: what to say of the weights besides what the loop knows.
    """
    require_legal_here(run)
    run.workdir.mkdir(parents=True, exist_ok=True)
    placement = Placement(run.strategy, make_mesh(run.strategy))
    tx = make_optimizer(run.optimizer, run.steps)
    state, frozen = prepare(run, placement, tx)
    frozen_hash = store.content_hash(frozen)
    step_fn = make_train_step(run.problem, tx, placement, state)
    rate = schedule(run.optimizer, run.steps)
    consumed: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(run.workdir / "checkpoints"))
        stopped = stack.enter_context(stop_signals())
        facts = {"frozen": frozen_hash, "config": comparable(manifest.get("config"), run.workdir)}
        facts |= {"encoders": manifest["encoders"]} if "encoders" in manifest else {}
        restored = checkpoints.restore(state, facts)
        if restored is not None:
            state, meta = restored
            consumed.update(meta["consumed"])
        start = int(state.step)
        speed = Speed(run.problem, list(placement.mesh.devices.flat))
        report = stack.enter_context(
            Report(run.name, run.workdir, start, run.steps, run.log_every, rate, speed)
        )
        profiler = stack.enter_context(
            Profiler(run.workdir / "profile", run.profile, run.steps - start)
        )
        pending: Pending | None = None
        for step, (source, batch) in enumerate(batches(start), start):
            consumed.update(_count(source, batch))
            batch.pop("missing", None)  # counted; the device has no use for it
            placed = place(batch, placement)
            profiler.before(step - start)
            state, metrics = step_fn(state, frozen, placed)
            profiler.after(step - start, metrics)
            if pending is not None:
                report(pending)
            pending = Pending(step + 1, metrics | _seen(consumed), speed.work(placed))
            last = step + 1 == run.steps or bool(stopped)
            if last or (step + 1) % run.save_every == 0:
                report.require_finite(pending)
                checkpoints.save(state, facts | {"consumed": dict(consumed)})
            if last:
                report(pending)
            if stopped:
                raise KeyboardInterrupt
    folder = _finish(run, state, frozen_hash, consumed, manifest)
    plot_loss(run.workdir)
    return folder


def require_legal_here(run: Run) -> None:
    """Raises ValueError where the run does not fit on a mesh of the devices there are."""
    require_legal(
        run.problem,
        run.strategy,
        jax.device_count(),
        slices=len(by_slice(run.strategy, jax.devices())),
        batch_sizes=dict(run.batch_sizes),
        lengths=run.lengths,
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are only noted, in the list given: the step is finished and saved first.

    Raised inside a step they would leave a donated, dead state. The second one is not held back.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


# What may change when a run goes on.
FREE = (
    "workdir",
    "sharding",
    "remat",
    "accumulate",
    "frame_chunk",
    "log_every",
    "save_every",
    "decoding",
    "features",
)


def comparable(config: dict[str, Any] | None, workdir: Path) -> dict[str, Any]:
    """What of a config must stay the same for a run to go on, wherever its folder lies."""

    def kept(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: kept(x) for name, x in value.items() if name not in FREE}

    return json.loads(json.dumps(kept(config or {})).replace(str(workdir), "WORKDIR"))


def prepare(run: Run, placement: Placement, tx: Any) -> tuple[TrainState, Tree]:
    """The initial state and the frozen tree, both placed on the mesh."""
    abstract = run.problem.abstract()
    trainable, frozen = partition.split(nn.unbox(abstract), run.problem.trainable)
    given = store.merge(*[store.load(folder)[0] for folder in run.start])
    given = store.merge(given, copies(given, run.begin_as))
    source = f"start={', '.join(run.start) or '(nothing)'}"
    frozen_values = store.pick(given, frozen, source)
    initial = run.problem.initialise(jax.random.key(run.seed))
    values = store.flatten(store.pick(store.merge(initial, given), trainable, source))
    where = store.flatten(placement.parameters(abstract))
    params = {n: jax.device_put(x, where[n]) for n, x in values.items()}
    fixed = {
        n: jax.device_put(x.astype(run.problem.dtype), where[n])
        for n, x in store.flatten(frozen_values).items()
    }
    state = make_state(store.unflatten(params), tx, jax.random.key(run.seed + 1))
    return _replicate_rest(state, placement), store.unflatten(fixed)


def copies(given: Tree, begin_as: tuple[tuple[str, str], ...]) -> Tree:
    """The arrays under each pair's second prefix, named as under its first."""
    found: dict[str, Any] = {}
    for new, old in begin_as:
        named = {n: x for n, x in store.flatten(given).items() if n.startswith(old)}
        if not named:
            raise ValueError(f"begin_as: got {old!r}, expected a prefix of the start weights")
        found |= {new + name.removeprefix(old): x for name, x in named.items()}
    return store.unflatten(found)


def _replicate_rest(state: TrainState, placement: Placement) -> TrainState:
    """Counters and keys go to all devices; moments already lie where their parameters do."""

    def place_one(x: jax.Array) -> jax.Array:
        return x if x.ndim else jax.device_put(x, placement.replicated)

    return jax.tree.map(place_one, state)


def place(batch: HostBatch, placement: Placement) -> dict[str, jax.Array]:
    """Puts this host's rows onto the mesh: global arrays, split over the data axes.

    The rows are those of its ``placement.readers()``.
    """
    hosts = placement.readers()[1]
    shapes = {n: (x.shape[0] * hosts, *x.shape[1:]) for n, x in batch.items()}
    where = placement.batch({n: jax.ShapeDtypeStruct(s, batch[n].dtype) for n, s in shapes.items()})
    return {
        n: jax.make_array_from_process_local_data(where[n], x, shapes[n]) for n, x in batch.items()
    }


def _count(source: str, batch: HostBatch) -> dict[str, int]:
    """This host's examples a field and a source: what a run has seen, and what it could not."""
    size = len(next(iter(batch.values())))
    counts = {f"source/{source}": size} | {f"field/{name}": size for name in batch}
    if "missing" in batch:
        del counts["field/missing"]
        counts[f"skipped/{source}"] = int(batch["missing"].sum())
        counts[f"source/{source}"] -= counts[f"skipped/{source}"]
    return counts


def _seen(consumed: collections.Counter[str]) -> dict[str, int]:
    """Samples so far; and records that could not be read, where leaving them out was asked for."""
    counts = {
        kind: [n for name, n in consumed.items() if name.startswith(f"{kind}/")]
        for kind in ("source", "skipped")
    }
    seen = {"samples": sum(counts["source"])}
    return seen | ({"skipped": sum(counts["skipped"])} if counts["skipped"] else {})


def _finish(
    run: Run,
    state: TrainState,
    frozen_hash: str,
    consumed: collections.Counter[str],
    manifest: dict[str, Any],
) -> Path:
    folder = run.workdir / "weights"
    facts = {
        "run": run.name,
        "size": run.problem.size.name,
        "step": int(state.step),
        "seed": run.seed,
        "frozen": frozen_hash,
        "consumed": dict(sorted(consumed.items())),
    }
    store.save(folder, jax.device_get(state.params), manifest | facts)
    return folder
