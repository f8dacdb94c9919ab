"""The one loop of every stage and branch; what differs between them is in the ``Run``."""

import collections
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vljax import store
from vljax.sharding.mesh import by_slice, make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.processes import Vote, first_alone, is_first, wait_for_all
from vljax.sharding.strategy import Strategy
from vljax.store import Tree
from vljax.train.checkpoint import Checkpoints
from vljax.train.legality import require_legal
from vljax.train.metrics import plot_loss
from vljax.train.optimizer import OptimizerConfig, make_optimizer, schedule
from vljax.train.profiling import Profiler
from vljax.train.report import Pending, Report
from vljax.train.speed import Speed
from vljax.train.start import prepare, told
from vljax.train.step import Problem, make_train_step
from vljax.train.watch import Watchdog, stop_signals

HostBatch = dict[str, np.ndarray]
Batches = Callable[[int], Iterator[tuple[str, HostBatch]]]  # from a step on: (source, batch)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: a problem, how to minimise it, and where it starts and lives.

    ``start``: folders of weights, later ones over earlier ones; what they lack is initialised
    if it is trainable and an error if it is frozen. ``begin_as``: pairs of slash prefixes; what
    lies under the first begins as a copy of what the start weights hold under the second.
    ``watchdog_seconds``: how long a step may take, see ``Watchdog``; 0 for ever.
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
    watchdog_seconds: float = 0.0
    batch_sizes: tuple[tuple[str, int], ...] = ()
    lengths: tuple[int, ...] = ()
    profile: tuple[int, int] | None = None  # from which step to which, where this command begins


def fit(run: Run, batches: Batches, manifest: dict[str, Any]) -> Path:
    """Trains to ``run.steps``, resuming from what is in its workdir; returns its weights' folder.

    Args:
      batches: gives the pairs of source name and batch that follow a step.
      manifest: what to say of the weights besides what the loop knows.

    Raises KeyboardInterrupt(signal, text) when stopped, after the step is saved.
    """
    require_legal_here(run)
    run.workdir.mkdir(parents=True, exist_ok=True)
    placement = Placement(run.strategy, make_mesh(run.strategy))
    tx = make_optimizer(run.optimizer, run.steps)
    if is_first():
        print(told(run.problem, placement, tx), file=sys.stderr)
    state, frozen, frozen_hash = prepare(
        run.problem, run.start, run.begin_as, run.seed, placement, tx
    )
    frozen = run.problem.lay_out(frozen)
    step_fn = make_train_step(run.problem, tx, placement, state)
    vote = Vote(placement.mesh)
    consumed: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(run.workdir / "checkpoints"))
        signals = stack.enter_context(stop_signals())
        facts = {"frozen": frozen_hash, "config": comparable(manifest.get("config"), run.workdir)}
        facts |= {"encoders": manifest["encoders"]} if "encoders" in manifest else {}
        restored = checkpoints.restore(state, facts)
        if restored is not None:
            state, meta = restored
            consumed.update(meta["consumed"])
        start = int(state.step)
        report = stack.enter_context(make_report(run, start, list(placement.mesh.devices.flat)))
        profiler = stack.enter_context(
            Profiler(run.workdir / "profile", run.profile, run.steps - start)
        )
        stacks = run.workdir / f"stacks_{jax.process_index()}.txt"
        watchdog = stack.enter_context(Watchdog(run.watchdog_seconds, stacks))
        wait_for_all("first step")  # which compiles: all of them begin with it together
        pending: Pending | None = None
        for step, (source, batch) in enumerate(batches(start), start + 1):
            asked = vote.cast(max(signals, default=0))
            placed = place(batch, placement)
            consumed.update(_count(source, placed))
            placed.pop("missing", None)  # counted; the step has no use for it
            profiler.before(step - 1 - start)
            state, metrics = step_fn(state, frozen, placed)
            profiler.after(step - 1 - start, metrics)
            if pending is not None:
                jax.block_until_ready(pending.metrics)  # no more than two steps are under way
                report(pending)
            stopped = asked()  # by any process, and known to all of them at this step
            watchdog.beat()
            pending = Pending(step, metrics | _seen(consumed), report.speed.work(placed))
            if stopped or step == run.steps or step % run.save_every == 0:
                report.require_finite(pending)
                report(pending)  # before the step is saved: its row would be missing after a kill
                pending = None
                seen = {"consumed": _whole(consumed), "next_batch": step}
                checkpoints.save(state, facts | seen)
            if stopped:
                raise KeyboardInterrupt(stopped, f"after step {step}, which is saved")
    folder = run.workdir / "weights"
    params = _on_host(state.params)
    first_alone("weights", lambda: _finish(folder, run, params, frozen_hash, consumed, manifest))
    return folder


def make_report(run: Run, start: int, devices: list[jax.Device]) -> Report:
    rate, speed = schedule(run.optimizer, run.steps), Speed(run.problem, devices)
    writes = is_first()
    return Report(run.name, run.workdir, start, run.steps, run.log_every, rate, speed, writes)


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


# What may change when a run goes on.
FREE = (
    "workdir",
    "sharding",
    "remat",
    "attention",
    "unroll",
    "accumulate",
    "frame_chunk",
    "log_every",
    "save_every",
    "watchdog_seconds",
    "decoding",
    "features",
)


def comparable(config: dict[str, Any] | None, workdir: Path) -> dict[str, Any]:
    """What of a config must stay the same for a run to go on, wherever its folder lies."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: kept(x) for name, x in value.items() if name not in FREE}
        if isinstance(value, list | tuple):
            return [kept(x) for x in value]
        inside = isinstance(value, str) and f"{value}/".startswith(f"{workdir}/")
        return f"WORKDIR{value.removeprefix(str(workdir))}" if inside else value

    return kept(config or {})


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


def _count(source: str, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    """All processes' examples a field and a source: what a run has seen, and what it could not."""
    size = len(next(iter(batch.values())))
    counts: dict[str, Any] = {f"source/{source}": size} | {f"field/{name}": size for name in batch}
    if "missing" in batch:
        del counts["field/missing"]
        counts[f"skipped/{source}"] = batch["missing"].sum()  # not waited for
        counts[f"source/{source}"] -= counts[f"skipped/{source}"]
    return counts


def _seen(consumed: Mapping[str, Any]) -> dict[str, Any]:
    """Samples so far; and records that could not be read, where leaving them out was asked for."""
    counts = {
        kind: [n for name, n in consumed.items() if name.startswith(f"{kind}/")]
        for kind in ("source", "skipped")
    }
    seen = {"samples": sum(counts["source"])}
    return seen | ({"skipped": sum(counts["skipped"])} if counts["skipped"] else {})


def _whole(consumed: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(n) for name, n in sorted(consumed.items())}


def _on_host(params: Tree) -> Tree:
    """The whole of each array, in every process."""
    if jax.process_count() == 1:
        return jax.device_get(params)
    return multihost_utils.process_allgather(params, tiled=True)


def _finish(
    folder: Path,
    run: Run,
    params: Tree,
    frozen_hash: str,
    consumed: collections.Counter[str],
    manifest: dict[str, Any],
) -> None:
    facts = {
        "run": run.name,
        "size": run.problem.size.name,
        "step": run.steps,
        "seed": run.seed,
        "frozen": frozen_hash,
        "consumed": _whole(consumed),
    }
    store.save(folder, params, manifest | facts)
    plot_loss(run.workdir)
