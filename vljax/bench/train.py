"""The vision step with random weights: how long it takes here, and beside PyTorch.

Every contender is measured in a process of its own, in turns, so that neither keeps the other's
memory, threads or device; what disturbs the machine then disturbs both.
"""

import concurrent.futures.process
import dataclasses
import functools
import importlib.util
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vljax.data.text import IGNORE
from vljax.models.sizes import VideoLlamaSize, video_llama_size
from vljax.nn.attention import KERNELS
from vljax.nn.stack import REMAT
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import Tree
from vljax.train import partition
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig, make_optimizer
from vljax.train.speed import executed_flops, peak_of, step_flops
from vljax.train.step import Problem, make_state, make_train_step

PYTORCH = "PyTorch"
TRAINED = (r"frame_position/", r"video_qformer/", r"video_proj/")  # as in the vision stages
RATES = OptimizerConfig(warmup_steps=0, steps_per_epoch=1)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured. ``layers`` of ViT and LLaMA, 0 for all; ``frames`` a clip."""

    size: str = "7b"
    layers: int = 0
    batch: int = 4
    seq: int = 512
    frames: int = 8
    remat: str = "none"
    attention: str = "xla"
    unroll: bool = False

    @property
    def model(self) -> VideoLlamaSize:
        size = video_llama_size(self.size)
        if not self.layers:
            return size
        towers = {
            name: dataclasses.replace(getattr(size, name), depth=self.layers)
            for name in ("vit", "llama")
        }
        return dataclasses.replace(size, **towers)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One contender's steps in seconds, the highest memory in bytes, and what a step does.

    ``flops`` are the step's without what is made again, ``executed`` with it; ``peak`` is the
    device's, None where it is not known. ``failed``: a sentence, where nothing was measured.
    """

    name: str
    seconds: tuple[float, ...] = ()
    memory: int = 0
    device: str = ""
    flops: int = 0
    executed: int = 0
    peak: float | None = None
    failed: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def mfu(self) -> float | None:
        return None if self.peak is None else self.flops / self.median / self.peak


Step = Callable[[], float]  # does a step, waits for it, returns the loss


def compare(
    cases: list[Case],
    steps: int,
    rounds: int,
    say: Callable[[str], None],
    show: Callable[[int, int], None],
) -> list[Measurement]:
    """All cases, then PyTorch if it is there; ``steps`` a round after one that is not counted.

    ``say`` is given a sentence, ``show`` how many turns are done, of how many.
    """
    contenders: list[tuple[Callable[..., Measurement], Case]] = [(ours, case) for case in cases]
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        from vljax.bench.hugging_face import theirs

        contenders.append((theirs, cases[0]))
    else:
        say("torch or transformers is not installed, so ours is measured alone")
    found: list[list[Measurement]] = [[] for _ in contenders]
    show(0, rounds * len(contenders))
    for turn in range(rounds):
        for i, (measure, case) in enumerate(contenders):
            if not (found[i] and found[i][-1].failed):
                found[i].append(_alone(measure, case, steps))
            show(turn * len(contenders) + i + 1, rounds * len(contenders))
    return [_joined(results) for results in found]


def _alone(measure: Callable[..., Measurement], case: Case, steps: int) -> Measurement:
    """In a fresh process, which gives back all it took."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(measure, case, steps).result()
        except concurrent.futures.process.BrokenProcessPool:
            name = _name(case) if measure is ours else PYTORCH
            return Measurement(name, failed="its process was killed, for memory most likely")


def _joined(results: list[Measurement]) -> Measurement:
    last = results[-1]
    if last.failed:
        return last
    return dataclasses.replace(
        last,
        seconds=tuple(s for r in results for s in r.seconds),
        memory=max(r.memory for r in results),
    )


def _name(case: Case) -> str:
    layers = "unrolled" if case.unroll else "scanned"
    return f"remat {case.remat}, {case.attention} attention, {layers}"


def timed(step: Step, steps: int) -> tuple[float, ...]:
    """Seconds of each step, the first one left out. Raises FloatingPointError for a bad loss."""
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - began)
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}: nothing to be compared")
    return tuple(seconds[1:])


def ours(case: Case, steps: int) -> Measurement:
    """Ours, on the first device there is."""
    device = jax.devices()[0]
    problem = make_problem(case, device.platform)
    require_room(problem, case, device.platform)
    batch = make_batch(case)
    try:
        seconds = timed(make_step(problem, batch, device), steps)
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as error:
        told = str(error).strip().splitlines()[0][:200]
        return Measurement(_name(case), failed=told)
    return Measurement(
        _name(case),
        seconds,
        memory_of(device),
        device.device_kind,
        step_flops(problem, batch).total,
        executed_flops(problem, batch).total,
        peak_of(device.device_kind),
    )


def make_problem(case: Case, platform: str) -> Problem:
    """The vision stage's; half precision where there is an accelerator for it."""
    dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    objective = make_objective("vision")
    return Problem(
        case.model,
        objective,
        TRAINED,
        dtype,
        remat=case.remat,
        attention=case.attention,
        unroll=case.unroll,
    )


def make_batch(case: Case) -> dict[str, np.ndarray]:
    """Noise in place of clips and words; every row is full, its media at its beginning."""
    rng, size = np.random.default_rng(0), case.model
    spoken = 1 + size.video_qformer.queries  # from where there are words: BOS, media, words
    tokens = rng.integers(3, size.llama.vocab, (case.batch, case.seq), np.int32)
    tokens[:, 1:spoken] = size.llama.vocab
    labels = np.where(np.arange(case.seq) < spoken, IGNORE, tokens).astype(np.int32)
    side = size.vit.image
    return {
        "frames": rng.integers(0, 256, (case.batch, case.frames, side, side, 3), np.uint8),
        "frame_mask": np.ones((case.batch, case.frames), bool),
        "tokens": tokens,
        "labels": labels,
        "mask": np.ones((case.batch, case.seq), bool),
    }


def make_step(problem: Problem, batch: dict[str, np.ndarray], device: jax.Device) -> Step:
    placement = Placement(strategy("dp"), make_mesh(strategy("dp"), [device]))
    trainable, stacked = random_parameters(problem, placement)
    frozen = problem.lay_out(stacked)
    tx = make_optimizer(RATES, 1000)
    state = make_state(trainable, tx, jax.random.key(1))
    state = jax.device_put(state, placement.replicated)
    placed = jax.device_put(batch, placement.batch(batch))
    train_step = make_train_step(problem, tx, placement, state)

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, frozen, placed)
        return float(metrics["loss"])

    return step


def random_parameters(problem: Problem, placement: Placement) -> tuple[Tree, Tree]:
    """Trainables in float32, what is frozen in the problem's dtype; made where they will lie."""

    @functools.partial(jax.jit, static_argnums=(1, 2, 3), out_shardings=placement.replicated)
    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any, one: bool) -> jax.Array:
        return (0.03 * jax.random.uniform(key, shape, dtype, -1, 1) + one).astype(dtype)

    counter = iter(range(10**6))

    def tree(abstract: Tree, dtype: Any) -> Tree:
        def leaf(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
            key = jax.random.key(next(counter), impl="unsafe_rbg")
            return draw(key, x.shape, dtype, path[-1].key == "scale")

        return jax.tree.map_with_path(leaf, abstract)

    abstract = partition.split(nn.unbox(problem.abstract()), problem.trainable)
    return tree(abstract[0], jnp.float32), tree(abstract[1], problem.dtype)


def require_room(problem: Problem, case: Case, platform: str) -> None:
    """Raises ValueError where a host's memory cannot hold the weights: it would start to swap."""
    if platform != "cpu":
        return
    needs = sum(x.size for x in jax.tree.leaves(nn.unbox(problem.abstract()))) * 4
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needs > 0.7 * has:
        raise ValueError(
            f"the weights take {needs / 2**30:.0f} GiB in float32 and this machine has "
            f"{has / 2**30:.0f} GiB; measure a slice, such as --layers 4 --batch 1 --seq 128"
        )


def memory_of(device: jax.Device) -> int:
    """The device's highest use so far in bytes; on a CPU the process's."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


LAYERS = {"scanned": False, "unrolled": True}


def variants(remat: str, attention: str, layers: str) -> list[dict[str, Any]]:
    """Fields of the cases that the three flags name, each "all" or names with commas.

    Raises ValueError for a name that does not exist.
    """

    def named(flag: str, told: str, known: Any) -> list[str]:
        names = [*known] if told == "all" else told.split(",")
        for name in names:
            if name not in known:
                raise ValueError(f"--{flag}: got {name!r}, expected all or {', '.join(known)}")
        return names

    return [
        {"remat": policy, "attention": kernel, "unroll": LAYERS[how]}
        for kernel in named("attention", attention, KERNELS)
        for how in named("loop", layers, LAYERS)
        for policy in named("remat", remat, REMAT)
    ]


def require_sensible(case: Case, steps: int, rounds: int) -> None:
    """Raises ValueError for numbers that no step can have."""
    size = video_llama_size(case.size)
    limits = {
        "layers": (case.layers, 0, min(size.vit.depth, size.llama.depth)),
        "batch": (case.batch, 1, 2**16),
        "seq": (case.seq, 2 + size.video_qformer.queries, 2**16),
        "frames": (case.frames, 1, size.max_frames),
        "steps": (steps, 1, 10**6),
        "rounds": (rounds, 1, 10**6),
    }
    for name, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise ValueError(f"--{name}: got {value}, expected {least} to {most}")


HEAD = ("", "ms a step", "(least to most)", "GFLOP/s", "MFU", "TFLOP", "GiB", "to PyTorch's")


def table(measurements: list[Measurement]) -> str:
    """One line a contender, its FLOP/s by what a step needs and its TFLOP with what is made again.

    The last column says how many of its steps fit into one of PyTorch's.
    """
    others = [m.median for m in measurements if m.name == PYTORCH and m.seconds]
    needed = max(m.flops for m in measurements)

    def row(m: Measurement) -> tuple[str, ...]:
        return (
            m.name,
            f"{1e3 * m.median:,.0f}",
            f"({1e3 * min(m.seconds):,.0f} to {1e3 * max(m.seconds):,.0f})",
            f"{needed / m.median / 1e9:,.0f}",
            "-" if m.peak is None else f"{needed / m.median / m.peak:.1%}",
            f"{m.executed / 1e12:.3f}" if m.executed else "-",
            f"{m.memory / 2**30:.1f}",
            f"{others[0] / m.median:.2f}x" if others else "-",
        )

    rows = [HEAD, *(row(m) for m in measurements if m.seconds)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in rows]
    failed = [f"{m.name}: {m.failed}" for m in measurements if m.failed]
    return "\n".join([*aligned, *failed])
