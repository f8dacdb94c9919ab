"""Collectives read from HLO: of programs compiled here, and in the spellings of TPUs and GPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vljax.bench.hlo import Collective, collectives

MESH = {"fsdp": 4, "tensor": 2}


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()).reshape(4, 2), tuple(MESH))


def compiled(fn, mesh, *args):
    """The HLO of ``fn`` over arguments (shape, spec)."""
    abstract = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in args
    ]
    return jax.jit(fn).lower(*abstract).compile().as_text()


def test_a_sum_over_one_axis(mesh):
    def fn(x):
        return jax.shard_map(
            lambda y: jax.lax.psum(y, "tensor"), mesh=mesh, in_specs=P("fsdp", "tensor"),
            out_specs=P("fsdp", None),
        )(x)  # fmt: skip

    found = collectives(compiled(fn, mesh, ((64, 32), P("fsdp", "tensor"))), MESH)
    # a device holds [16, 16] floats, and a ring of two sends each half twice
    assert found == [Collective("all-reduce", "tensor", 1, 16 * 16 * 4)]


def test_a_loop_counts_as_often_as_it_runs(mesh):
    def fn(x, w):
        def body(x, w):
            return jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P())), None

        return jax.lax.scan(body, x, w)[0]

    args = ((16, 32), P()), ((5, 32, 32), P(None, "fsdp", None))
    (found,) = collectives(compiled(fn, mesh, *args), MESH)
    assert (found.kind, found.axis, found.count) in {
        ("all-reduce", "fsdp", 5),
        ("all-gather", "fsdp", 5),
    }


def test_a_program_without_any(mesh):
    assert collectives(compiled(jnp.tanh, mesh, ((8, 8), P("fsdp"))), MESH) == []


LOOP = """HloModule jit_f, is_scheduled=true

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%fused.1 (p: bf16[1,8,4]) -> bf16[1,8,16] {
  %p = bf16[1,8,4]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[1,8,16]{2,1,0} all-gather(%p), channel_id=9, replica_groups=GROUPS
}

%fused.2 (p: bf16[1,8,4]) -> bf16[1,8,16] {
  %p = bf16[1,8,4]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[1,8,16]{2,1,0} all-gather(%p), channel_id=9, replica_groups=GROUPS
}

%body (arg: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %arg = (s32[], bf16[8,4]) parameter(0)
  %a = bf16[1,8,16] fusion(%arg), kind=kCustom, calls=%fused.1
  %b = bf16[1,8,16] fusion(%arg), kind=kCustom, calls=%fused.2
  ROOT %out = (s32[], bf16[8,4]) tuple(%a, %b)
}

%condition (arg: (s32[], bf16[8,4])) -> pred[] {
  %arg = (s32[], bf16[8,4]) parameter(0)
  %constant.3 = s32[]{:T(128)} constant(32)
  %i = s32[] get-tuple-element(%arg), index=0
  ROOT %lt = pred[] compare(%i, %constant.3), direction=LT
}

ENTRY %main (x: bf16[8,4]) -> (s32[], bf16[8,4]) {
  %x = bf16[8,4] parameter(0)
  ROOT %while.1 = (s32[], bf16[8,4]) while(%x), condition=%condition, body=%bodySTATED
}
"""
GATHERED = 1 * 8 * 16 * 2 * 3 // 4  # three quarters of the result come from the other three


@pytest.mark.parametrize(
    "groups",
    [
        "[2,4]<=[4,2]T(1,0)",
        "{{0,2,4,6},{1,3,5,7}}",
        "mesh['axis_0'=4,'axis_1'=2] {'axis_0'}",
        "mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_2'}",
    ],
)
def test_spellings_of_groups_and_one_channel_twice_in_the_text(groups):
    text = LOOP.replace("GROUPS", groups).replace("STATED", "")
    assert collectives(text, MESH) == [Collective("all-gather", "fsdp", 32, 32 * GATHERED)]


def test_the_stated_trip_count_goes_before_the_constant():
    stated = ', backend_config={"known_trip_count":{"n":"7"}}'
    text = LOOP.replace("GROUPS", "{{0,2,4,6},{1,3,5,7}}").replace("STATED", stated)
    assert collectives(text, MESH)[0].count == 7


def test_groups_that_span_two_axes():
    text = LOOP.replace("GROUPS", "{{0,1,2,3,4,5,6,7}}").replace("STATED", "")
    assert collectives(text, MESH)[0].axis == "fsdp+tensor"


def test_a_permutation_along_an_axis():
    line = (
        "  %cp = (f32[8,4], f32[8,4], u32[], u32[]) collective-permute-start(%x), channel_id=1, "
        "source_target_pairs={{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}}\n"
        "  %cpd = f32[8,4] collective-permute-done(%cp)\n  ROOT %while.1"
    )
    text = LOOP.replace("GROUPS", "{{0,2,4,6},{1,3,5,7}}").replace("STATED", "")
    found = {c.kind: c for c in collectives(text.replace("  ROOT %while.1", line), MESH)}
    assert found["collective-permute"] == Collective("collective-permute", "fsdp", 1, 8 * 4 * 4)


def test_what_goes_between_slices_is_told_apart():
    line = (
        "  %send.3 = (f32[1024,8,128]{2,1,0}, u32[], token[]) send(%x, %token), channel_id=2, "
        'is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}\n'
        "  %done = token[] send-done(%send.3), channel_id=2\n  ROOT %while.1"
    )
    text = LOOP.replace("GROUPS", "{{0,2,4,6},{1,3,5,7}}").replace("STATED", "")
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    found = collectives(text.replace("  ROOT %while.1", line), mesh, slices=2)
    assert {(c.kind, c.axis) for c in found} == {("all-reduce", "slices"), ("all-gather", "fsdp")}
    assert found[0] == Collective("all-reduce", "slices", 1, 1024 * 8 * 128 * 4)


def test_text_that_is_no_hlo_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("nothing", MESH)
