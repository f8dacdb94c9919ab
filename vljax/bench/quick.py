"""A plan in less time: the step without its encoders is compiled, and they are added.

Encoders are frozen and only run forward: what they do is a closed form. Each device holds its part
of every array, gathers the rest once, and runs its own frames. Their activations are gone when the
language model's, which are more, come; so the peak grows by what is held.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from vljax.bench.compile import Facts, held_bytes
from vljax.bench.hlo import Collective, added
from vljax.sharding.placement import Placement
from vljax.store import flatten
from vljax.train.speed import forward_flops
from vljax.train.step import Problem

GIB = 2**30


def without_encoders(problem: Problem) -> Problem:
    """The same loss, of what the encoders would make."""
    return dataclasses.replace(problem, objective=problem.objective.from_features())


class Encoders(NamedTuple):
    """What a device has of them: bytes held, what it gathers, FLOPs forward."""

    held: int
    gathered: list[Collective]
    flops: float


def encoders(problem: Problem, placement: Placement, batch: Mapping[str, Any]) -> Encoders:
    """Of a problem and a global batch with frames."""
    arrays = encoder_arrays(problem, placement)
    forward = forward_flops(problem, batch)
    names = {name.split("/")[0] for name in arrays}
    flops = sum(forward.within(f"/{name}") for name in names) / placement.mesh.size
    return Encoders(held_bytes(arrays), list(gathers(arrays.values())), flops)


def with_encoders(facts: Facts, more: Encoders) -> Facts:
    """The facts of ``without_encoders(problem)``, with its encoders."""
    memory, parts, held = dict(facts["hbm_gib"]), dict(facts["parts_gib"]), more.held / GIB
    for name in ("arguments", "peak"):
        memory[name] = memory[name] if memory[name] is None else memory[name] + held
    parts["frozen"] += held
    found = added([*(Collective(**c) for c in facts["collectives"]), *more.gathered])
    counted = ("flops_compiled_per_device", "flops_per_device", "flops_per_device_once")
    return facts | {
        "hbm_gib": memory,
        "parts_gib": parts,
        "collectives": [dataclasses.asdict(c) for c in found],
        **{name: facts[name] + more.flops for name in counted},
    }


def encoder_arrays(problem: Problem, placement: Placement) -> dict[str, jax.ShapeDtypeStruct]:
    """What the encoders hold, as it is placed, by its slash name."""
    boxed = problem.held()
    rest = flatten(nn.unbox(without_encoders(problem).held()))
    where = flatten(placement.parameters(boxed))
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name])
        for name, x in flatten(nn.unbox(boxed)).items()
        if name not in rest
    }


def gathers(arrays: Iterable[jax.ShapeDtypeStruct]) -> Iterable[Collective]:
    """An all-gather of each that is split, by a ring."""
    for x in arrays:
        assert x.sharding is not None
        spec, mesh = x.sharding.spec, x.sharding.mesh
        named = [(a,) if isinstance(a, str) else a for a in spec if a]
        axes = [a for a in mesh.axis_names if any(a in names for names in named)]
        if axes:
            shards = math.prod(mesh.shape[a] for a in axes)
            size = math.prod(x.shape) * x.dtype.itemsize
            layers = x.shape[0] if len(x.shape) > 2 else 1
            yield Collective("all-gather", "+".join(axes), layers, size * (shards - 1) // shards)
