"""The one loop of every stage and branch; what differs between them is in the ``Run``."""

import collections
import contextlib
import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vljax import store
from vljax.progress import Progress
from vljax.sharding.mesh import by_slice, make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import Strategy
from vljax.store import Tree
from vljax.train import partition
from vljax.train.checkpoint import Checkpoints
from vljax.train.legality import require_legal
from vljax.train.metrics import MetricsLog, plot_loss
from vljax.train.optimizer import OptimizerConfig, make_optimizer, schedule
from vljax.train.step import Problem, TrainState, make_state, make_train_step

HostBatch = dict[str, np.ndarray]
Pending = tuple[int, dict[str, Any]]  # a step's number and metrics, not yet read
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
    with Checkpoints(run.workdir / "checkpoints") as checkpoints, stop_signals() as stopped:
        facts = {"frozen": frozen_hash, "config": comparable(manifest.get("config"), run.workdir)}
        facts |= {"encoders": manifest["encoders"]} if "encoders" in manifest else {}
        restored = checkpoints.restore(state, facts)
        if restored is not None:
            state, meta = restored
            consumed.update(meta["consumed"])
        start = int(state.step)
        log, progress = MetricsLog(run.workdir, start), Progress(run.name, run.steps, start)
        pending: Pending | None = None
        began = time.monotonic()
        for step, (source, batch) in enumerate(batches(start), start):
            consumed.update(_count(source, batch))
            batch.pop("missing", None)  # counted; the device has no use for it
            state, metrics = step_fn(state, frozen, place(batch, placement))
            if pending is not None:
                _report(run, pending, log, progress, rate, time.monotonic() - began)
            pending = (step + 1, metrics | _skipped(consumed))
            last = step + 1 == run.steps or bool(stopped)
            if last or (step + 1) % run.save_every == 0:
                _require_finite(run, pending)
                checkpoints.save(state, facts | {"consumed": dict(consumed)})
            if last:
                _report(run, pending, log, progress, rate, time.monotonic() - began)
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


def _skipped(consumed: collections.Counter[str]) -> dict[str, int]:
    """Records so far that could not be read, where leaving them out was asked for."""
    skipped = [n for name, n in consumed.items() if name.startswith("skipped/")]
    return {"skipped": sum(skipped)} if skipped else {}


def _report(
    run: Run,
    pending: Pending,
    log: MetricsLog,
    progress: Progress,
    rate: Callable,
    seconds: float,
) -> None:
    """Reads the metrics of the step before, while the device works on this one."""
    step, metrics = pending
    if step % run.log_every and step != run.steps:
        return
    _require_finite(run, pending)
    values = {name: float(value) for name, value in metrics.items()}
    row = {"step": step, **values, "lr": float(rate(step - 1)), "seconds": round(seconds, 2)}
    log.write(row)
    progress.show(step, f"loss {values['loss']:.4f}")


def _require_finite(run: Run, pending: Pending) -> None:
    """Nothing that is not a number is ever written down as progress."""
    step, metrics = pending
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if not np.isfinite([loss, norm]).all():
        raise FloatingPointError(
            f"{run.name}: loss is {loss}, gradient norm {norm} at step {step}; lower "
            "--config.optimizer.peak_lr, or look at every step with --config.log_every=1"
        )


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
