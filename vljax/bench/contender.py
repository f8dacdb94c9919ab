"""A compiled training step with its arguments, of random weights, on the devices at hand."""

import functools
import glob
import re
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vljax.bench.compile import Lowered
from vljax.bench.hlo import KINDS
from vljax.data.text import IGNORE
from vljax.models.sizes import VideoLlamaSize

CALLS, ROUNDS = 100, 9  # collectives in a row, and how often


class Turn(NamedTuple):
    """One step: seconds until its results are there, and of the processor in all threads."""

    seconds: float
    cpu: float


class Weights:
    """State and frozen weights, which the batches of one strategy share: steps use the state up."""

    def __init__(self, lowered: Lowered):
        state, frozen, _ = lowered.arguments
        self.state, self.frozen = _drawn((state, frozen))


class Contender:
    """A program that takes its turns."""

    def __init__(self, program: Any, lowered: Lowered, weights: Weights):
        self._program, self._weights = program, weights
        size, placed = lowered.problem.size, lowered.arguments[2]
        self._batch = {
            n: jax.device_put(_filled(n, x, size), x.sharding) for n, x in placed.items()
        }

    def step(self) -> Turn:
        """Raises FloatingPointError for a loss that is no number."""
        weights = self._weights
        made, turn = _timed(self._program, weights.state, weights.frozen, self._batch)
        weights.state, metrics = made
        if not np.isfinite(metrics["loss"]):
            raise FloatingPointError(f"the loss is {metrics['loss']}: nothing to be compared")
        return turn

    def traced(self) -> float | None:
        """Seconds a device spent in collectives during a step, waiting included; None untold."""
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level, options.enable_hlo_proto = 0, False  # else it takes seconds
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder, profiler_options=options):
                self.step()
            return collective_seconds(folder, jax.device_count())


def empty_collective(devices: Sequence[jax.Device]) -> Turn:
    """What a collective of all devices takes that has next to nothing to send: the least of some.

    Of many in a row, so that to begin and to end them does not count.
    """
    together, split = Mesh(devices, ("all",)), PartitionSpec("all")

    @jax.jit
    @functools.partial(jax.shard_map, mesh=together, in_specs=split, out_specs=split)
    def repeated(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, CALLS, lambda _, x: jax.lax.all_to_all(x, "all", 0, 0), x)

    x = jax.device_put(jnp.zeros(len(devices) ** 2), NamedSharding(together, split))
    turns = [_timed(repeated, x)[1] for _ in range(1 + ROUNDS)][1:]
    return Turn(*(min(spent) / CALLS for spent in zip(*turns, strict=True)))


def _timed(program: Any, *arguments: Any) -> tuple[Any, Turn]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = jax.block_until_ready(program(*arguments))
    return made, Turn(time.perf_counter() - wall, time.process_time() - cpu)


def _drawn(abstract: Any) -> Any:
    """Arrays of small random numbers where the abstract ones lie, norms' scales near one.

    Moments and counters are zeros, as an optimizer begins. One block of numbers is repeated: they
    are made on the host, which else would take longer than the steps.
    """
    noise = np.random.default_rng(0).uniform(-0.03, 0.03, 2**20 - 3).astype(np.float32)

    def one(path: Any, x: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            return jax.device_put(jax.random.key(0), x.sharding)
        moves = jnp.issubdtype(x.dtype, jnp.floating) and "opt_state" not in name
        block = (noise + ("scale" in name) if moves else np.zeros(1)).astype(x.dtype)

        def shard(index: Any) -> np.ndarray:
            return np.resize(block, np.empty(x.shape, bool)[index].shape)

        return jax.make_array_from_callback(x.shape, x.sharding, shard)

    return jax.tree.map_with_path(one, abstract)


def _filled(name: str, x: Any, size: VideoLlamaSize) -> np.ndarray:
    """Noise in place of clips and words; every row is full, its media at its beginning."""
    rng = np.random.default_rng(0)
    if x.dtype == bool:
        return np.ones(x.shape, bool)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return rng.uniform(-1, 1, x.shape).astype(x.dtype)
    if name == "frames":
        return rng.integers(0, 256, x.shape, np.uint8)
    words = rng.integers(3, size.llama.vocab, x.shape, np.int32)
    media = 1 + size.video_qformer.queries  # behind BOS
    words[:, 1:media] = size.llama.vocab if name == "tokens" else IGNORE
    return words


def collective_seconds(folder: str, devices: int) -> float | None:
    """Seconds a device, of what a trace names as a collective; of accelerators their own lines."""
    (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    planes = list(jax.profiler.ProfileData.from_file(file).planes)
    planes = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    named = re.compile(f"%?({'|'.join(KINDS)})|ncclDevKernel")
    found = [
        event.duration_ns
        for plane in planes
        for line in plane.lines
        for event in line.events
        if named.match(event.name)
    ]
    return sum(found) / 1e9 / devices if found else None
