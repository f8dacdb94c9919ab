"""One training step, full size, compiled for a topology; and what its compiler says of it."""

import dataclasses
import pathlib
import re
import resource
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vljax.bench.hlo import Collective, collectives
from vljax.bench.topology import Topology
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import Strategy
from vljax.train.optimizer import OptimizerConfig, make_optimizer
from vljax.train.speed import executed_flops
from vljax.train.step import Problem, abstract_arguments, make_train_step

STEPS = 1000  # of the schedule, which changes no shape


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a device. ``peak`` is all of it at the worst moment, as the compiler laid it out."""

    arguments: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Parts:
    """Bytes a device of what lives as long as the run; of ``Memory.arguments``."""

    frozen: int
    trainable: int
    optimizer: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step on a mesh. Without ``memory`` it was not compiled to the end, for ``reason``."""

    mesh: dict[str, int]
    devices: np.ndarray = dataclasses.field(repr=False)
    parts: Parts
    flops: float
    memory: Memory | None
    collectives: tuple[Collective, ...]
    reason: str
    needed: float
    compile_s: float
    peak_rss: int


def abstract_batch(
    problem: Problem, rows: int, frames: int, length: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch of ``rows`` clips of ``frames`` frames and ``length`` tokens."""

    def grown(name: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        second = frames if name in _BY_FRAME else length
        shape = (rows, second, *x.shape[2:]) if x.ndim > 1 else (rows,)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return {name: grown(name, x) for name, x in problem.objective.batch(problem.size).items()}


_BY_FRAME = ("frames", "frame_mask", "frame_tokens", "sight_features")


def compile_step(
    problem: Problem,
    optimizer: OptimizerConfig,
    strategy: Strategy,
    topology: Topology,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> Compiled:
    """Compiles the step as training would run it; nothing is allocated on any device.

    Raises ValueError for a mesh that the problem does not fit on.
    """
    mesh = make_mesh(strategy, topology.devices)
    placement = Placement(strategy, mesh)
    tx = make_optimizer(optimizer, STEPS)
    state, frozen, placed = abstract_arguments(problem, tx, placement, dict(batch))
    step = make_train_step(problem, tx, placement, state)
    began = time.monotonic()
    lowered = step.lower(state, frozen, placed)
    memory, found, reason, needed = _compile(lowered, dict(mesh.shape), topology)
    return Compiled(
        mesh=dict(mesh.shape),
        devices=mesh.devices,
        parts=Parts(*(held(x) for x in (frozen, state.params, state.opt_state, placed))),
        flops=executed_flops(problem, batch).total / mesh.size,
        memory=memory,
        collectives=found,
        reason=reason,
        needed=needed,
        compile_s=time.monotonic() - began,
        peak_rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def held(tree: Any) -> int:
    """Bytes of abstract arrays that one device holds."""

    def one(x: jax.ShapeDtypeStruct) -> int:
        if not jnp.issubdtype(x.dtype, jax.dtypes.extended):
            return int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize  # type: ignore[union-attr]
        return 0  # a random key

    return sum(one(x) for x in jax.tree.leaves(tree))


def _compile(
    lowered: Any, mesh: dict[str, int], topology: Topology
) -> tuple[Memory | None, tuple[Collective, ...], str, float]:
    """(memory, collectives, why it does not fit, bytes it would need)."""
    with tempfile.TemporaryDirectory() as folder:
        # The text of a compiled TPU step can't be asked for (XLA fails a check): it is dumped.
        options = {"xla_dump_to": folder}
        if topology.backend == "cuda":
            options["xla_gpu_autotune_level"] = "0"  # there is no card to try kernels on
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            needed, reason = out_of_memory(str(error))
            if not reason:
                raise
            return None, (), reason, needed
        stats = compiled.memory_analysis()
        found = collectives(_dumped(folder, compiled), mesh, topology.slices)
    peak = getattr(stats, "peak_memory_in_bytes", 0)
    laid_out = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )
    memory = Memory(
        stats.argument_size_in_bytes, stats.temp_size_in_bytes, peak if peak else laid_out
    )
    return memory, tuple(found), "", memory.peak


def _dumped(folder: str, compiled: Any) -> str:
    files = sorted(
        (f for f in pathlib.Path(folder).glob("*after_optimizations.txt")),
        key=lambda f: f.stat().st_size,
    )
    return files[-1].read_text() if files else compiled.as_text()


def out_of_memory(message: str) -> tuple[float, str]:
    """(bytes needed, a sentence) of XLA's message; (0, "") if it is about something else."""
    told = re.search(r"([\d.]+)([GMK]?)\) exceeds available HBM \(([\d.]+)([GMK]?)\)", message)
    if not told:
        told = re.search(r"Used ([\d.]+)([GMK]) of ([\d.]+)([GMK]) hbm", message)
    if not told:
        return 0.0, ""
    needs, has = (_size(told[i], told[i + 1]) for i in (1, 3))
    largest = re.findall(r"Size: ([\d.]+[GMK])\s+.*?Shape: ([^\s{]+)", message, re.DOTALL)[:3]
    buffers = ", ".join(f"{shape} of {size}iB" for size, shape in largest)
    tail = f"; the largest buffers are {buffers}" if buffers else ""
    return needs, f"needs at least {needs / 2**30:.2f} GiB of {has / 2**30:.2f} GiB{tail}"


def _size(number: str, unit: str) -> float:
    return float(number) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]
