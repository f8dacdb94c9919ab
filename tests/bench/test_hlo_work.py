"""FLOPs of one device counted in HLO: by hand, and of programs compiled here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vljax.bench.hlo_work import work

NESTED = """HloModule jit_f, is_scheduled=true

%inner (p: (s32[], f32[2,8,16])) -> (s32[], f32[2,8,16]) {
  %p = (s32[], f32[2,8,16]{2,1,0}) parameter(0)
  %a = f32[2,8,16]{2,1,0} get-tuple-element(%p), index=1
  %w = f32[2,16,16]{2,1,0} constant({...})
  %dot.1 = f32[2,8,16]{2,1,0} dot(%a, %w), lhs_batch_dims={0}, lhs_contracting_dims={2}, \
rhs_batch_dims={0}, rhs_contracting_dims={1}, metadata={op_name="jit(f)/dot_general"}
  ROOT %out = (s32[], f32[2,8,16]{2,1,0}) tuple(%i, %dot.1)
}

%condition (p: (s32[], f32[2,8,16])) -> pred[] {
  %p = (s32[], f32[2,8,16]) parameter(0)
  ROOT %lt = pred[] constant(true)
}

%fused (x: f32[2,8,16]) -> f32[16,16] {
  %x = f32[2,8,16]{2,1,0} parameter(0)
  %b = f32[16,16]{1,0} bitcast(%x)
  ROOT %dot.2 = f32[16,16]{1,0} dot(%b, %b), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

%outer (p: (s32[], f32[2,8,16])) -> (s32[], f32[2,8,16]) {
  %p = (s32[], f32[2,8,16]{2,1,0}) parameter(0)
  %a = f32[2,8,16]{2,1,0} get-tuple-element(%p), index=1
  %f = f32[16,16]{1,0} fusion(%a), kind=kCustom, calls=%fused
  ROOT %w1 = (s32[], f32[2,8,16]) while(%p), condition=%condition, body=%inner, \
backend_config={"known_trip_count":{"n":"7"}}
}

ENTRY %main (x: (s32[], f32[2,8,16])) -> (s32[], f32[2,8,16]) {
  %x = (s32[], f32[2,8,16]) parameter(0)
  %g = (f32[8,24]{1,0}, s8[4]{0}) custom-call(%l, %r), custom_call_target="__cublas$lt$matmul", \
backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}
  ROOT %w2 = (s32[], f32[2,8,16]) while(%x), condition=%condition, body=%outer, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""
INNER, FUSED = 2 * 2 * 8 * 16 * 16, 2 * 16 * 16 * 16


def test_loops_within_loops_batches_fusions_and_calls_of_cublas():
    text = NESTED.replace("  %g = ", "  %l = f32[8,32]{1,0} copy(%x)\n  %g = ")
    found = work(text)
    assert found.flops == 3 * (7 * INNER + FUSED) + 2 * 8 * 24 * 32
    # In the inner loop one kernel of 1 KiB, in the outer a fusion of 1 KiB; a copy and cuBLAS once.
    assert found.kernels == 3 * (7 + 1) + 2
    assert found.written == 3 * (7 * 1024 + 1024) + 8 * 32 * 4 + 8 * 24 * 4 + 4


@pytest.mark.parametrize(
    ("said", "shapes", "multiply_adds"),
    [
        # A product of matrices as a TPU writes it, and one with a batch of 4 as a dimension of
        # space: each window of the dilated image meets one element.
        ("dim_labels=bf_io->bf", ("8,32", "32,24", "8,24"), 8 * 32 * 24),
        (
            "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
            ("4,8,32", "4,32,24", "4,8,24"),
            4 * 8 * 32 * 24,
        ),
        # Patches; and a kernel of three that misses one element at either end.
        (
            "window={size=8x8 stride=8x8}, dim_labels=b01f_01io->b01f",
            ("2,48,48,3", "8,8,3,96", "2,6,6,96"),
            2 * 48 * 48 * 3 * 96,
        ),
        (
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f, feature_group_count=4",
            ("2,10,8", "3,2,16", "2,10,16"),
            2 * (10 * 3 - 2) * 2 * 16,
        ),
    ],
)
def test_convolutions(said, shapes, multiply_adds):
    image, kernel, result = (f"f32[{s}]" for s in shapes)
    text = f"""ENTRY %main () -> f32[] {{
  %x = {image} parameter(0)
  %k = {kernel} parameter(1)
  ROOT %c = {result} convolution(%x, %k), {said}
}}"""
    assert work(text).flops == 2 * multiply_adds


def test_what_is_replicated_counts_on_each_device():
    """[64, 32] @ [32, 32] five times: rows over four devices, the other two compute the same."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))

    def fn(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    def compiled(*specs):
        shapes = (64, 32), (5, 32, 32)
        where = [NamedSharding(mesh, spec) for spec in specs]
        args = [
            jax.ShapeDtypeStruct(s, jnp.float32, sharding=w)
            for s, w in zip(shapes, where, strict=True)
        ]
        step = jax.jit(fn, out_shardings=where[0])
        return work(step.lower(*args).compile().as_text()).flops

    whole = 5 * 2 * 64 * 32 * 32
    assert compiled(P("fsdp"), P()) == whole / 4
    assert compiled(P(("fsdp", "tensor")), P()) == whole / 8
    assert compiled(P(), P()) == whole
