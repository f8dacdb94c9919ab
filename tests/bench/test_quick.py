"""What is added for encoders that were not compiled, against the whole step lowered."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vljax.bench.compile import abstract_batch, lower_step
from vljax.bench.quick import encoder_arrays, encoders, with_encoders, without_encoders
from vljax.bench.topology import describe
from vljax.bench.train import RATES
from vljax.models.sizes import video_llama_size
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.train.objectives import make_objective
from vljax.train.speed import executed_flops, step_flops
from vljax.train.step import Problem

PROBLEM = Problem(video_llama_size("7b"), make_objective("vision"), (r"video_",), jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp", "fsdp", "fsdp_tp"])
def test_held_bytes_flops_and_gathers(name):
    topology, how = describe("cpu:8"), strategy(name)
    batch = abstract_batch(PROBLEM, 8, 4, 64)
    whole = lower_step(PROBLEM, RATES, how, topology, batch)
    rest = without_encoders(PROBLEM)
    encoded = abstract_batch(rest, 8, 4, 64)
    less = lower_step(rest, RATES, how, topology, encoded)
    memory = {"arguments": 0.0, "temporaries": 1.0, "peak": 1.0}
    facts = {
        "hbm_gib": memory,
        "collectives": [],
        "flops_per_device": executed_flops(rest, encoded).total / 8,
        "flops_per_device_once": step_flops(rest, encoded).total / 8,
        "flops_compiled_per_device": executed_flops(rest, encoded).total / 8 + 1,
        "parts_gib": {"frozen": less.parts["frozen"] / 2**30},
    }
    placement = Placement(how, whole.mesh)
    facts = with_encoders(facts, encoders(PROBLEM, placement, batch))
    assert facts["parts_gib"]["frozen"] * 2**30 == pytest.approx(whole.parts["frozen"], abs=1)
    assert memory["peak"] == 1.0  # what was given is left as it was
    assert facts["hbm_gib"]["peak"] - 1 == pytest.approx(facts["hbm_gib"]["arguments"])
    assert facts["flops_compiled_per_device"] - facts["flops_per_device"] == 1.0
    assert facts["flops_per_device"] == executed_flops(PROBLEM, batch).total / 8
    assert facts["flops_per_device_once"] == step_flops(PROBLEM, batch).total / 8
    encoder = nn.unbox(PROBLEM.held())["frame_encoder"]
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(encoder))
    assert len(encoder_arrays(PROBLEM, placement)) == len(jax.tree.leaves(encoder))
    sent = sum(c["bytes"] for c in facts["collectives"])
    # All but each device's own part; norms and biases, one in a thousand, are whole everywhere.
    most = {"dp": 0, "fsdp": size * 7 / 8, "fsdp_tp": size * 7 / 8}[name]
    assert sent == pytest.approx(most, rel=0.01)
    assert {c["axis"] for c in facts["collectives"]} <= {"fsdp", "tensor", "fsdp+tensor"}


def test_a_step_without_encoders_takes_what_they_make():
    rest = without_encoders(PROBLEM)
    assert "frame_tokens" in abstract_batch(rest, 8, 4, 64)
    assert "frame_encoder" not in rest.held()
    assert dataclasses.replace(rest, objective=PROBLEM.objective) == PROBLEM
