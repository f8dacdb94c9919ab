"""From logical axes to PartitionSpecs, on literal cases and on whole models."""

import dataclasses
import logging
from collections import Counter

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vljax.models.sizes import video_llama_size
from vljax.models.video_llama import abstract_parameters
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement, partition_spec, reading
from vljax.sharding.strategy import AXES, STRATEGIES, Strategy, strategy

RULES = (
    ("batch", ("data", "fsdp")),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("act_mlp", ("fsdp", "tensor")),
)
MESH = {"data": 1, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("axes", "shape", "spec"),
    [
        ((), (), P()),
        (("embed", "mlp"), (64, 6), P("fsdp", "tensor")),
        (("layers", "embed", "heads"), (3, 64, 6), P(None, "fsdp", "tensor")),
        ((None, "embed"), (64, 64), P(None, "fsdp")),
        (("norm",), (64,), P(None)),
        (("embed", "embed"), (64, 64), P("fsdp", None)),  # a used axis is skipped
        (("heads", "mlp"), (8, 8), P("tensor", None)),
        (("embed", "act_mlp"), (8, 8), P("fsdp", "tensor")),
        (("embed",), (6,), P(None)),  # does not divide
        (("heads", "mlp"), (7, 8), P(None, "tensor")),  # and so stays free for another
        (("batch", None), (8, 5), P("fsdp", None)),  # data has size 1
        (("act_mlp",), (16,), P(("fsdp", "tensor"))),
        (("act_mlp",), (12,), P("fsdp")),  # 3 are left, which tensor does not divide
    ],
)
def test_specs(axes, shape, spec):
    assert partition_spec(axes, shape, RULES, MESH) == spec


def test_an_unknown_name_raises():
    with pytest.raises(ValueError, match="logical axis: got 'embd', expected one of layers"):
        partition_spec(("embd",), (8,), RULES, MESH)


def test_as_many_names_as_axes():
    with pytest.raises(ValueError, match=r"axes \('embed',\): expected 2 of them for shape \(8, 8"):
        partition_spec(("embed",), (8, 8), RULES, MESH)


def test_what_is_not_split_is_logged(caplog):
    with caplog.at_level(logging.DEBUG, logger="vljax"):
        partition_spec(("heads",), (7,), RULES, MESH)
    assert caplog.messages == ["heads of size 7 is not split over tensor (2)"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("dp", {"data": 8}),
        ("fsdp", {"data": 1, "fsdp": 8}),
        ("tp", {"data": 1, "tensor": 8}),
        ("fsdp_tp", {"data": 1, "fsdp": 4, "tensor": 2}),
        ("dp_tp", {"data": 4, "tensor": 2}),
        ("fsdp_sp", {"data": 1, "fsdp": 4, "seq": 2}),
        ("fsdp_tp:slices=2", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("fsdp_tp:data=2:tensor=4", {"data": 2, "fsdp": 1, "tensor": 4}),
        ("fsdp:fsdp=2,slices=2", {"data": 4, "fsdp": 2}),  # data takes the rest
    ],
)
def test_meshes_of_eight_devices(name, shape):
    assert dict(make_mesh(strategy(name)).shape) == shape


def test_one_device_is_enough_without_a_fixed_axis():
    assert dict(make_mesh(strategy("fsdp"), jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1}


def test_meshes_that_do_not_fit():
    with pytest.raises(ValueError, match="fsdp_tp: got 3 devices, expected a multiple of 2"):
        make_mesh(strategy("fsdp_tp"), jax.devices()[:3])
    fixed = Strategy("fixed", (("data", 2), ("tensor", 2)), ())
    with pytest.raises(ValueError, match="fixed: got 8 devices, expected 4"):
        make_mesh(fixed)


def test_an_unknown_strategy_is_named():
    with pytest.raises(ValueError, match="sharding: got 'ddp', expected one of dp, fsdp, tp"):
        strategy("ddp")


@pytest.mark.parametrize(
    "change", ["seq=2", "tensor", "tensor=0", "tensor=two", "tensor=2:tensor=2"]
)
def test_a_size_that_cannot_be(change):
    sentence = "got '.*', expected each of data, fsdp, tensor, slices once at most, as in fsdp_tp:t"
    with pytest.raises(ValueError, match=sentence):
        strategy(f"fsdp_tp:{change}")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a machine that is not here."""

    id: int
    slice_index: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def pod(slices: int, side: int, shuffled: bool = False) -> list[Chip]:
    """Slices of side x side chips; a process has four of a row."""
    chips = [
        Chip(i, i // side**2, i // 4, coords=(i % side, i // side % side, 0))
        for i in range(slices * side**2)
    ]
    return chips[::-1] if shuffled else chips


@pytest.mark.parametrize("name", STRATEGIES)
def test_only_data_spans_slices(name):
    mesh = make_mesh(strategy(name), pod(2, 4, shuffled=True))
    assert mesh.size == len({d.id for d in mesh.devices.flat}) == 32
    for i, part in enumerate(np.split(mesh.devices, 2)):  # of the first axis
        assert {d.slice_index for d in part.flat} == {i}
    assert mesh.axis_names[0] == "data"
    assert mesh.shape["data"] == {"dp": 32, "dp_tp": 16}.get(name, 2)


def test_slices_must_be_as_the_devices_tell():
    with pytest.raises(ValueError, match="fsdp:slices=4: got slices=4, expected 2, as the devices"):
        make_mesh(strategy("fsdp:slices=4"), pod(2, 4))
    with pytest.raises(ValueError, match="data=1, expected a multiple of the 2 slices, which"):
        make_mesh(strategy("fsdp:data=1"), pod(2, 4))
    with pytest.raises(ValueError, match="got 8 devices, expected a multiple of 3 slices"):
        make_mesh(strategy("fsdp:slices=3"))


def test_a_tensor_axis_follows_the_torus():
    mesh = make_mesh(strategy("fsdp_tp:tensor=4"), pod(1, 4))
    for line in mesh.devices.reshape(-1, 4):
        assert len({d.coords[0] for d in line}) == 1 or len({d.coords[1] for d in line}) == 1


def test_processes_that_hold_the_same_rows_read_the_same():
    grid = np.array([Chip(i, process_index=i // 2) for i in range(8)])
    apart = jax.sharding.Mesh(grid.reshape(4, 2), ("data", "tensor"))
    assert reading(apart, ("data", "fsdp")) == {0: 0, 1: 1, 2: 2, 3: 3}
    shared = jax.sharding.Mesh(grid.reshape(2, 4), ("data", "tensor"))
    assert reading(shared, "data") == {0: 0, 1: 0, 2: 1, 3: 1}
    mixed = np.array([Chip(i, process_index=p) for i, p in enumerate((0, 0, 0, 1, 1, 1))])
    with pytest.raises(ValueError, match="got processes that hold some rows of a batch in common"):
        reading(jax.sharding.Mesh(mixed.reshape(3, 2), ("data", "tensor")), "data")


def test_one_process_reads_all_rows():
    assert Placement(strategy("fsdp"), make_mesh(strategy("fsdp"))).readers() == (0, 1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_rules_speak_of_axes_that_exist(name):
    entry = STRATEGIES[name]
    assert entry.name == name and strategy(name) == entry
    for axis, where in entry.rules:
        assert axis in AXES
        assert {where} if isinstance(where, str) else set(where) <= {*dict(entry.mesh), "data"}


@pytest.fixture(scope="module", params=["tiny", "7b"])
def tree(request):
    return request.param, abstract_parameters(video_llama_size(request.param))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_parameter_gets_a_spec(tree, name):
    size, boxed = tree
    placement = Placement(STRATEGIES[name], make_mesh(STRATEGIES[name]))
    shardings, plain = placement.parameters(boxed), nn.unbox(boxed)
    assert jax.tree.structure(shardings) == jax.tree.structure(plain)
    split = Counter()
    for array, sharding in zip(jax.tree.leaves(plain), jax.tree.leaves(shardings), strict=True):
        local = sharding.shard_shape(array.shape)  # raises where it does not divide
        split[local == array.shape] += array.size
    assert sum(split.values()) == sum(x.size for x in jax.tree.leaves(plain))
    share = split[False] / sum(split.values())
    if name == "dp":
        assert share == 0
    elif size == "7b":
        assert share > 0.9


def test_every_parameter_is_named(tree):
    leaves = jax.tree.leaves(tree[1], is_leaf=lambda x: isinstance(x, nn.Partitioned))
    assert all(isinstance(x, nn.Partitioned) and set(x.names) <= {*AXES, None} for x in leaves)


def test_a_batch_is_split_over_the_data_axes():
    batch = {"tokens": jax.ShapeDtypeStruct((8, 5), int), "odd": jax.ShapeDtypeStruct((3,), int)}
    placement = Placement(strategy("dp_tp"), make_mesh(strategy("dp_tp")))
    specs = {n: s.spec for n, s in placement.batch(batch).items()}
    assert specs == {"tokens": P("data", None), "odd": P(None)}
