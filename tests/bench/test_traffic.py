"""Hand-made programs whose traffic is known, compiled here and by the TPUs' compiler: to the byte.

A ring over N devices sends (N - 1) / N of the whole from each; adding up sends it twice.
"""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vljax.bench.compile import _dumped
from vljax.bench.hlo import Collective, collectives
from vljax.bench.topology import describe

MESH = {"fsdp": 4, "tensor": 2}
WEIGHT = 256 * 256  # numbers of a layer's
ROWS = P(("fsdp", "tensor"), None)


@pytest.fixture(scope="module", params=["cpu:8", "v5e:2x4", "v5p:2x2x2"])
def topology(request):
    try:
        return describe(request.param)
    except ValueError as error:
        pytest.skip(str(error))


def traffic(topology, fn, *arguments, out):
    """The collectives of ``fn`` on each device's part of arguments (shape, spec)."""
    mesh = Mesh(np.array(topology.devices).reshape(4, 2), tuple(MESH))
    specs = tuple(spec for _, spec in arguments)
    abstract = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in arguments
    ]
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    with tempfile.TemporaryDirectory() as folder:
        lowered = jax.jit(mapped).lower(*abstract)
        program = lowered.compile(compiler_options={"xla_dump_to": folder})
        return collectives(_dumped(folder, program), MESH)


gather = functools.partial(jax.lax.all_gather, axis_name="fsdp", axis=0, tiled=True)


def layer(x, w):
    # no product of matrices, for which TPUs would send bfloat16
    return jnp.tanh(x + gather(w)[: x.shape[0]]), None


def test_a_gather_in_a_scan_of_seven(topology):
    def fn(x, w):
        return jax.lax.scan(layer, x, w)[0]

    found = traffic(
        topology, fn, ((512, 256), ROWS), ((7, 256, 256), P(None, "fsdp", None)), out=ROWS
    )
    assert found == [Collective("all-gather", "fsdp", 7, 7 * 4 * WEIGHT * 3 // 4)]


def test_loops_within_loops_and_a_sum_over_the_other_axis(topology):
    def fn(x, w):
        def three(x, w):
            return jax.lax.psum(jax.lax.scan(layer, x, w)[0], "tensor"), None

        return jax.lax.scan(three, x, w)[0]

    arguments = ((512, 256), P("fsdp", None)), ((3, 5, 256, 256), P(None, None, "fsdp", None))
    assert traffic(topology, fn, *arguments, out=P("fsdp", None)) == [
        Collective("all-gather", "fsdp", 15, 15 * 4 * WEIGHT * 3 // 4),
        Collective("all-reduce", "tensor", 3, 3 * 4 * (512 // 4 * 256)),
    ]


def test_several_of_one_kind_and_size_each_count(topology):
    def fn(x, w, v):
        return layer(layer(x, w)[0], v)[0]

    weight = (256, 256), P("fsdp", None)
    found = traffic(topology, fn, ((512, 256), ROWS), weight, weight, out=ROWS)
    # a compiler may send both at once
    assert [(c.kind, c.axis, c.bytes) for c in found] == [
        ("all-gather", "fsdp", 2 * 4 * WEIGHT * 3 // 4)
    ]


@pytest.mark.parametrize("axis", MESH)
def test_sums_scattered_over_one_of_two_axes(topology, axis):
    def fn(x):
        return jax.lax.psum_scatter(x, axis, scatter_dimension=0, tiled=True)

    found = traffic(topology, fn, ((1024, 256), P()), out=P(axis, None))
    (one,) = found
    count, whole = MESH[axis], 4 * 1024 * 256
    # two devices may exchange halves by adding up whole ones
    assert one == Collective("reduce-scatter", axis, 1, whole * (count - 1) // count)
