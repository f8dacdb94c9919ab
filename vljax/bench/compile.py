"""One training step, full size, compiled for a topology; and what its compiler says of it."""

import dataclasses
import functools
import re
import resource
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vljax.bench.hlo import collectives
from vljax.bench.hlo_work import work
from vljax.bench.settled import assigned, settled
from vljax.bench.topology import Topology
from vljax.models.precision import array_bytes
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import Strategy
from vljax.train.legality import require_legal
from vljax.train.optimizer import OptimizerConfig, make_optimizer
from vljax.train.speed import executed_flops, step_flops
from vljax.train.step import Problem, abstract_arguments, make_train_step

STEPS = 1000  # of the schedule, which changes no shape
GIB = 2**30
BY_FRAME = ("frames", "frame_mask", "frame_tokens", "sight_features")
Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is to be compiled. ``parts``: bytes a device of what its arguments are."""

    mesh: Mesh
    parts: dict[str, int]
    stage: Any  # jax.stages.Lowered

    @functools.cached_property
    def text(self) -> str:
        return self.stage.as_text()


@dataclasses.dataclass(frozen=True)
class Lowered(Program):
    """A training step of abstract ``arguments`` (state, frozen, batch) that lie where it wants."""

    problem: Problem
    batch: Mapping[str, jax.ShapeDtypeStruct]
    arguments: tuple[Any, Any, Any]


def abstract_batch(
    problem: Problem, rows: int, frames: int, length: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch of ``rows`` clips of ``frames`` frames and ``length`` tokens."""

    def grown(name: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        second = frames if name in BY_FRAME else length
        shape = (rows, second, *x.shape[2:]) if x.ndim > 1 else (rows,)
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return {name: grown(name, x) for name, x in problem.objective.batch(problem.size).items()}


def lower_step(
    problem: Problem,
    optimizer: OptimizerConfig,
    strategy: Strategy,
    topology: Topology,
    batch: Mapping[str, jax.ShapeDtypeStruct],
) -> Lowered:
    """The step as training would run it; nothing is allocated on any device.

    Raises ValueError for a mesh that the problem does not fit on.
    """
    rows, length = (batch["tokens"].shape if "tokens" in batch else (None, None))[:2]
    require_legal(
        problem,
        strategy,
        len(topology.devices),
        slices=topology.slices,
        batch_sizes={"all": rows} if rows else {},
        lengths=(length,) if length else (),
    )
    mesh = make_mesh(strategy, topology.devices)
    placement = Placement(strategy, mesh)
    tx = make_optimizer(optimizer, STEPS)
    state, frozen, placed = abstract_arguments(problem, tx, placement, dict(batch))
    step = make_train_step(problem, tx, placement, state)
    held = {"frozen": frozen, "trainable": state.params, "optimizer": state.opt_state}
    parts = {name: held_bytes(tree) for name, tree in (held | {"batch": placed}).items()}
    arguments = state, frozen, placed
    return Lowered(mesh, parts, step.lower(*arguments), problem, batch, arguments)


def held_bytes(tree: Any) -> int:
    """Bytes of placed abstract arrays that one device holds."""
    arrays = [
        x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    ]  # random keys aside
    return sum(map(array_bytes, arrays))


def compile_step(lowered: Lowered, topology: Topology) -> Facts:
    """What the compiler says, as JSON takes it; ``reason`` is why it does not fit, if it says so.

    Raises JaxRuntimeError for an error of the compiler that is not about memory.
    """
    return compiled_step(lowered, topology, whole=False)[1]


def compiled_step(lowered: Lowered, topology: Topology, whole: bool = True) -> tuple[Any, Facts]:
    """(the program, to be called where its devices are here; the facts of ``compile_step``)."""
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(_flops, lowered)  # Python, while the compiler needs none
        program, told = ask_compiler(lowered, topology, whole)
    return program, {
        "mesh": dict(lowered.mesh.shape),
        **told,
        "parts_gib": {name: size / GIB for name, size in lowered.parts.items()},
        **counting.result(),
        "compile_s": time.monotonic() - began,
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _flops(lowered: Lowered) -> Facts:
    devices = lowered.mesh.size
    return {
        "flops_per_device": executed_flops(lowered.problem, lowered.batch).total / devices,
        "flops_per_device_once": step_flops(lowered.problem, lowered.batch).total / devices,
    }


def ask_compiler(lowered: Program, topology: Topology, whole: bool = True) -> tuple[Any, Facts]:
    """The program, and why it does not fit, its memory, its collectives, what a device computes.

    Without ``whole`` there may be no program: libtpu is not waited for longer than the facts need,
    see ``bench.settled``. Do that in a process that ends soon (``bench.plan.apart``).
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # The text of a compiled step can't be asked for on some TPUs (XLA fails a check).
        options: dict[str, Any] = {"xla_dump_to": folder}
        if topology.backend == "cuda" and not topology.here:
            options["xla_gpu_autotune_level"] = "0"  # there is no card to try kernels on
            # Triton's, untuned, finds no tiles for 257 tokens a frame.
            options["xla_gpu_enable_triton_gemm"] = False
        compiling = functools.partial(lowered.stage.compile, compiler_options=options)
        early = topology.backend == "tpu" and not whole
        try:
            program = settled(compiling, Path(folder)) if early else compiling()
        except jax.errors.JaxRuntimeError as error:
            needed, reason = out_of_memory(str(error))
            if not reason:
                raise
            arguments = sum(lowered.parts.values()) / GIB
            memory = {"arguments": arguments, "temporaries": None, "peak": needed}
            if "largest buffers" not in reason:  # the step's arguments alone are too much
                reason += f"; the largest arguments are {largest(lowered.parts)}"
            told = {"reason": reason, "hbm_gib": memory, "collectives": []}
            return None, told | {"flops_compiled_per_device": 0, "bytes_written_per_device": 0}
        text = _dumped(folder, program)
        memory = _memory(program.memory_analysis()) if program else _parts(assigned(Path(folder)))
    found = collectives(text, dict(lowered.mesh.shape), topology.slices)
    done = work(text)
    return program, {
        "reason": "",
        "hbm_gib": memory,
        "collectives": [dataclasses.asdict(c) for c in found],
        "flops_compiled_per_device": done.flops,
        "bytes_written_per_device": done.written,
    }


def largest(parts: Mapping[str, int], most: int = 2) -> str:
    """The largest in words: "frozen of 26.43 GiB, optimizer of 0.20 GiB"."""
    ordered = sorted(parts.items(), key=lambda part: -part[1])[:most]
    return ", ".join(f"{name} of {size / GIB:.2f} GiB" for name, size in ordered)


def _memory(stats: Any) -> Facts:
    """GiB a device, of the compiler's own account."""
    return _parts(
        {
            "arguments": stats.argument_size_in_bytes,
            "temporaries": stats.temp_size_in_bytes,
            "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        }
    )


def _parts(sizes: Mapping[str, int]) -> Facts:
    """GiB of bytes. Buffers that a program was given stay its own, so that its peak is their sum:
    what is alive at once may be some per cent less, which helps nobody while it runs."""
    return {
        "arguments": sizes["arguments"] / GIB,
        "temporaries": sizes["temporaries"] / GIB,  # activations and what is gathered
        "peak": sum(sizes.values()) / GIB,
    }


def _dumped(folder: str, compiled: Any) -> str:
    """The optimised HLO: of the modules that were dumped, the largest is the step."""
    files = list(Path(folder).glob("*after_optimizations.txt"))
    return max(files, key=lambda f: f.stat().st_size).read_text() if files else compiled.as_text()


def out_of_memory(message: str) -> tuple[float, str]:
    """(GiB needed, a sentence) of XLA's message; (0, "") if it is about something else."""
    told = re.search(r"([\d.]+)([GMK]?)\) exceeds available HBM \(([\d.]+)([GMK]?)\)", message)
    told = told or re.search(r"Used ([\d.]+)([GMK]) of ([\d.]+)([GMK]) hbm", message)
    if not told:
        return 0.0, ""
    needs, has = (float(told[i]) * _UNITS[told[i + 1]] / GIB for i in (1, 3))
    largest = re.findall(r"Size: ([\d.]+[GMK])\s.*?Shape: ([^\s{]+)", message, re.DOTALL)[:3]
    buffers = ", ".join(f"{shape} of {size}iB" for size, shape in largest)
    tail = f"; the largest buffers are {buffers}" if buffers else ""
    return needs, f"needs at least {needs:.2f} GiB of {has:.2f} GiB{tail}"


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
