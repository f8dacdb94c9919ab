"""The one loop of every stage and branch; what differs between them is in the ``Run``."""

import collections
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vljax import store
from vljax.progress import Progress
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.processes import Vote, first_alone, is_first
from vljax.sharding.strategy import Strategy
from vljax.store import Tree
from vljax.train.checkpoint import Checkpoints
from vljax.train.metrics import MetricsLog, plot_loss
from vljax.train.optimizer import OptimizerConfig, make_optimizer, schedule
from vljax.train.start import prepare
from vljax.train.step import Problem, make_train_step
from vljax.train.watch import Watchdog, stop_signals

HostBatch = dict[str, np.ndarray]
Pending = tuple[int, dict[str, Any]]  # a step's number and metrics, not yet read
Batches = Callable[[int], Iterator[tuple[str, HostBatch]]]  # from a step on: (source, batch)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: a problem, how to minimise it, and where it starts and lives.

    ``start``: folders of weights, later ones over earlier ones; what they lack is initialised
    if it is trainable and an error if it is frozen. ``begin_as``: pairs of slash prefixes; what
    lies under the first begins as a copy of what the start weights hold under the second.
    ``watchdog_seconds``: how long a step may take, see ``Watchdog``; 0 for ever.
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


def fit(run: Run, batches: Batches, manifest: dict[str, Any]) -> Path:
    """Trains to ``run.steps``, resuming from what is in its workdir; returns its weights' folder.

    Args:
      batches: gives the pairs of source name and batch that follow a step.
      manifest: what to say of the weights besides what the loop knows.

    Raises KeyboardInterrupt(signal, text) when stopped, after the step is saved.
    """
    run.workdir.mkdir(parents=True, exist_ok=True)
    placement = Placement(run.strategy, make_mesh(run.strategy))
    tx = make_optimizer(run.optimizer, run.steps)
    state, frozen, frozen_hash = prepare(
        run.problem, run.start, run.begin_as, run.seed, placement, tx
    )
    step_fn = make_train_step(run.problem, tx, placement, state)
    vote, reporter = Vote(placement.mesh), Reporter(run)
    consumed: collections.Counter[str] = collections.Counter()
    stacks = run.workdir / f"stacks_{jax.process_index()}.txt"
    with (
        Checkpoints(run.workdir / "checkpoints") as checkpoints,
        stop_signals() as signals,
        Watchdog(run.watchdog_seconds, stacks) as watchdog,
    ):
        facts = {"frozen": frozen_hash, "config": comparable(manifest.get("config"), run.workdir)}
        facts |= {"encoders": manifest["encoders"]} if "encoders" in manifest else {}
        restored = checkpoints.restore(state, facts)
        if restored is not None:
            state, meta = restored
            consumed.update(meta["consumed"])
        start = int(state.step)
        reporter.begin(start)
        for step, (source, host_batch) in enumerate(batches(start), start + 1):
            asked = vote.cast(max(signals, default=0))
            batch = place(host_batch, placement)
            consumed.update(_count(source, batch))
            batch.pop("missing", None)  # counted; the device has no use for it
            state, metrics = step_fn(state, frozen, batch)
            reporter.tell()
            stopped = asked()  # by any process, and known to all of them at this step
            watchdog.beat()
            reporter.note(step, metrics | _skipped(consumed))
            if stopped or step == run.steps or step % run.save_every == 0:
                reporter.tell()  # or a run that goes on from here would lack a row
                facts_now = {"consumed": _whole(consumed), "next_batch": step}
                checkpoints.save(state, facts | facts_now)
            if stopped:
                raise KeyboardInterrupt(stopped, f"after step {step}, which is saved")
    folder = run.workdir / "weights"
    params = _on_host(state.params)
    first_alone("weights", lambda: _finish(folder, run, params, frozen_hash, consumed, manifest))
    return folder


# What may change when a run goes on.
FREE = (
    "workdir",
    "sharding",
    "log_every",
    "save_every",
    "watchdog_seconds",
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


def place(batch: HostBatch, placement: Placement) -> dict[str, jax.Array]:
    """Puts this process's rows onto the mesh: global arrays, split over the data axes."""
    index, count = placement.host

    def one(x: np.ndarray) -> jax.Array:
        rows, first = len(x) * count, len(x) * index
        where = placement.batch(jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype))

        def held(part: tuple[slice, ...]) -> np.ndarray:
            begin, end, _ = part[0].indices(rows)
            if begin < first or end > first + len(x):
                raise ValueError(
                    f"batch_size: got {rows}, which sharding {placement.strategy.name} can't split "
                    f"over its {placement.mesh.size} devices; expected a multiple of the data axes"
                )
            return x[(slice(begin - first, end - first), *part[1:])]

        return jax.make_array_from_callback((rows, *x.shape[1:]), where, held)

    return {name: one(x) for name, x in batch.items()}


def _count(source: str, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
    """All processes' examples a field and a source: what a run has seen, and what it could not."""
    size = len(next(iter(batch.values())))
    counts: dict[str, Any] = {f"source/{source}": size} | {f"field/{name}": size for name in batch}
    if "missing" in batch:
        del counts["field/missing"]
        counts[f"skipped/{source}"] = batch["missing"].sum()  # not waited for
        counts[f"source/{source}"] -= counts[f"skipped/{source}"]
    return counts


def _skipped(consumed: Mapping[str, Any]) -> dict[str, Any]:
    """Records so far that could not be read, where leaving them out was asked for."""
    skipped = [n for name, n in consumed.items() if name.startswith("skipped/")]
    return {"skipped": sum(skipped)} if skipped else {}


def _whole(consumed: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(n) for name, n in sorted(consumed.items())}


class Reporter:
    """Tells of a step while the device works on the next one; of several processes the first."""

    def __init__(self, run: Run):
        self.run, self._rate = run, schedule(run.optimizer, run.steps)
        self._pending: Pending | None = None

    def begin(self, start: int) -> None:
        """The run goes on after step ``start``."""
        self._log = MetricsLog(self.run.workdir, start) if is_first() else None
        self._progress = Progress(self.run.name, self.run.steps, start)
        self._began = time.monotonic()

    def note(self, step: int, metrics: dict[str, Any]) -> None:
        self._pending = step, metrics

    def tell(self) -> None:
        """Waits for the step that was noted, and tells of it if its turn has come; once."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        jax.block_until_ready(metrics)
        logged = step % self.run.log_every == 0 or step == self.run.steps
        if logged or step % self.run.save_every == 0:
            self._require_finite(step, metrics)
        if not logged or self._log is None:
            return
        values = {name: float(value) for name, value in metrics.items()}
        seconds = round(time.monotonic() - self._began, 2)
        self._log.write(
            {"step": step, **values, "lr": float(self._rate(step - 1))} | {"seconds": seconds}
        )
        self._progress.show(step, f"loss {values['loss']:.4f}")

    def _require_finite(self, step: int, metrics: dict[str, Any]) -> None:
        """Nothing that is not a number is ever written down as progress."""
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        if not np.isfinite([loss, norm]).all():
            raise FloatingPointError(
                f"{self.run.name}: loss is {loss}, gradient norm {norm} at step {step}; lower "
                "--config.optimizer.peak_lr, or look at every step with --config.log_every=1"
            )


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
