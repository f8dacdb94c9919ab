"""How fast training goes, and what part of the devices' peak that is."""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from vljax.sharding.chips import chip_of
from vljax.train import flops, partition
from vljax.train.step import Problem


def peak_of(kind: str) -> float | None:
    """The peak FLOP/s of a device of this ``device_kind``; None for one that is not known."""
    chip = chip_of(kind)
    return chip.flops if chip else None


def step_flops(problem: Problem, batch: Mapping[str, Any]) -> flops.Flops:
    """What a step must do for a (possibly abstract) batch: its loss, and the gradient of that.

    What is frozen has no weight gradient, and what comes before the first trainable is not
    differentiated: neither is counted. Nor is what rematerialisation does again.
    """
    abstract = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in batch.items()}
    return executed_flops(problem.plain(), abstract)


def executed_flops(problem: Problem, batch: Mapping[str, Any]) -> flops.Flops:
    """The same with what is made again."""
    moving, fixed = partition.split(nn.unbox(problem.abstract()), problem.trainable)

    def loss(moving: Any, fixed: Any, batch: Any) -> jax.Array:
        return problem.loss(partition.merge(moving, fixed), batch, jax.random.key(0))[0]

    return flops.count(jax.value_and_grad(loss), moving, fixed, batch)


def forward_flops(problem: Problem, batch: Mapping[str, Any]) -> flops.Flops:
    """Of the loss alone."""
    params = nn.unbox(problem.abstract())
    return flops.count(lambda p, b: problem.loss(p, b, jax.random.key(0))[0], params, batch)


class Work(NamedTuple):
    """What one step does, on all devices: clips (or images, texts), positions of the LLM, FLOPs."""

    clips: int
    tokens: int = 0
    flops: int = 0


class Speed:
    """Rates between two readings, of steps that were finished between them."""

    def __init__(self, problem: Problem, devices: list[jax.Device]):
        self._problem, self._devices = problem, devices
        self._peak = peak_of(devices[0].device_kind)
        self._count = functools.cache(self._flops)
        self._since: float | None = None
        self._done = Work(0)

    def work(self, batch: Mapping[str, Any]) -> Work:
        """Of a step on a global batch."""
        shapes = tuple((name, x.shape, str(x.dtype)) for name, x in sorted(batch.items()))
        clips = len(next(iter(batch.values())))
        tokens = batch["tokens"].size if "tokens" in batch else 0
        return Work(clips, tokens, self._count(shapes) if self._peak else 0)

    def _flops(self, shapes: tuple[tuple[str, tuple[int, ...], str], ...]) -> int:
        batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in shapes}
        return step_flops(self._problem, batch).total

    def done(self, work: Work) -> None:
        """A step was dispatched whose end the next reading waits for."""
        self._done = Work(*(a + b for a, b in zip(self._done, work, strict=True)))

    def read(self) -> dict[str, float]:
        """Rates since the last reading; nothing at the first, before which programs compile."""
        now, work = time.monotonic(), self._done
        seconds = None if self._since is None else max(now - self._since, 1e-9)
        self._since, self._done = now, Work(0)
        if seconds is None:
            return {}
        rates = {"clips_per_s": work.clips / seconds}
        if work.tokens:
            rates["tokens_per_s_per_device"] = work.tokens / seconds / len(self._devices)
        if self._peak:
            rates["mfu"] = work.flops / seconds / self._peak / len(self._devices)
        return rates
