"""A plan in less time: the step without its encoders is compiled, and they are added.

Encoders are frozen and only run forward: what they do is a closed form. Each device holds its part
of every array, gathers the rest once, and runs its own frames. Their activations are gone when the
language model's, which are more, come; so the peak grows by what is held.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

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


def with_encoders(
    facts: Facts,
    problem: Problem,
    placement: Placement,
    batch: Mapping[str, Any],
    encoded: Mapping[str, Any],
) -> Facts:
    """The facts of ``without_encoders(problem)``, with its encoders.

    ``batch`` has their frames, ``encoded`` what they make of them.
    """
    arrays = encoder_arrays(problem, placement)
    held, devices = held_bytes(arrays) / GIB, placement.mesh.size
    memory, parts = dict(facts["hbm_gib"]), dict(facts["parts_gib"])
    for name in ("arguments", "peak"):
        memory[name] = memory[name] if memory[name] is None else memory[name] + held
    parts["frozen"] += held
    found = [Collective(**c) for c in facts["collectives"]]
    rest = forward_flops(without_encoders(problem), encoded).total
    flops = (forward_flops(problem, batch).total - rest) / devices
    counted = ("flops_compiled_per_device", "flops_per_device", "flops_per_device_once")
    return facts | {
        "hbm_gib": memory,
        "parts_gib": parts,
        "collectives": [dataclasses.asdict(c) for c in added([*found, *gathers(arrays)])],
        **{name: facts[name] + flops for name in counted},
    }


def encoder_arrays(problem: Problem, placement: Placement) -> list[jax.ShapeDtypeStruct]:
    """What the encoders hold, as it is placed."""
    boxed = problem.held()
    rest = flatten(nn.unbox(without_encoders(problem).held()))
    where = flatten(placement.parameters(boxed))
    return [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[name])
        for name, x in flatten(nn.unbox(boxed)).items()
        if name not in rest
    ]


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
