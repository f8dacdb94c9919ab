"""Which kernels are held in how many bits, and what weights take, on trees of real sizes."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from vljax import store
from vljax.models import precision
from vljax.models.precision import formats, held, weights_bytes
from vljax.models.sizes import TINY, video_llama_size
from vljax.models.video_llama import abstract_parameters
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import flatten, unflatten


@pytest.fixture(scope="module")
def whole() -> dict:
    """7B's abstract parameters, boxed."""
    return abstract_parameters(video_llama_size("7b"))


def sizes(boxed: dict, *names: str) -> dict[str, int]:
    dtypes = dict.fromkeys(flatten(nn.unbox(boxed)), "bfloat16")
    return weights_bytes(nn.unbox(held(boxed, formats(*names), dtypes)))


def test_bytes_of_7b(whole):
    plain, int8, int4 = (sizes(whole, *q)["llama"] for q in ((), ("int8",), ("int4",)))
    layers, head = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 4096 * 32000
    columns = 32 * (5 * 4096 + 2 * 11008)
    assert plain == 2 * (layers + 2 * head + 65 * 4096)
    assert int8 == plain - layers - head + 4 * (columns + 32000)
    assert int4 == int8 - layers // 2 - 4 * columns + 4 * layers // 64
    vit, quantised = (sizes(whole, "", q)["frame_encoder"] for q in ("", "int8"))
    kernels = 39 * (4 * 1408**2 + 2 * 1408 * 6144)
    assert quantised == vit - kernels + 4 * 39 * (5 * 1408 + 6144)


@pytest.mark.parametrize("quantise", ["int8", "int4"])
def test_quantised_trees_are_split_as_their_kernels(whole, quantise):
    """On four by two devices each has an eighth, scales included."""
    rule = strategy("fsdp_tp")
    placement = Placement(rule, make_mesh(rule, jax.devices()))
    tree = held(whole, formats(quantise), {})
    where = flatten(placement.parameters(tree))
    before = flatten(placement.parameters(whole))
    for name, x in flatten(nn.unbox(tree)).items():
        kernel, _, part = name.rpartition("/")
        if part in ("int8", "int4", "middle") or name.endswith("kernel/scale"):
            share = np.prod(where[name].shard_shape(x.shape)) / x.size
            assert share == (1 / 8 if x.shape[-2] > 1 else share)
            assert where[name].spec[-1] == before[kernel].spec[-1]
            assert part != quantise or where[name].spec == before[kernel].spec


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("int3",), "quantise: got 'int3', expected int8 or int4, or nothing"),
        (("", "int4"), "quantise_vit: got 'int4', expected int8, or nothing"),
    ],
)
def test_other_formats_are_refused(asked, said):
    with pytest.raises(ValueError, match=said):
        formats(*asked)


def test_what_is_trained_or_not_there_is_refused():
    name = "llama/layers/mlp/up/kernel"
    with pytest.raises(ValueError, match=f"quantise: {name} is trained, but only what is frozen"):
        precision.require_frozen(formats("int8"), [], [name])
    with pytest.raises(ValueError, match=r"asked for frame_encoder/vit.*nothing is used"):
        precision.require_frozen(formats("", "int8"), [name], [])
    precision.require_frozen(formats("int8"), [name], ["video_proj/kernel"])


def test_a_line_tells_what_weights_take():
    sizes = {"llama": 3 * 2**30, "vit": 2**30, "table": 100}
    line = "weights: 4.0 GiB (llama 3.0 GiB, vit 1.0 GiB)"
    assert precision.told(sizes, 5 * 2**30) == f"{line} of 5.0 GiB that are free"
    assert precision.told(sizes, 5 * 2**30, 2).startswith("weights: 8.0 GiB")
    assert precision.told(sizes, 2**30).startswith(f"{line}, but only 1.0 GiB are free: quantise")
    assert precision.told(sizes, None) == line
    assert 2**20 < precision.free_bytes() < 2**50


def test_arrays_are_quantised_as_they_are_read(tmp_path):
    """A layer at a time, by the inputs that random tokens make large; and take what was said."""
    llama = dataclasses.replace(TINY.llama, vocab=40, width=64, depth=2, mlp=96)
    size = dataclasses.replace(TINY, llama=llama)
    abstract = {"llama": nn.unbox(abstract_parameters(size))["llama"]}
    rng = np.random.default_rng(0)
    drawn = {n: rng.normal(0, 0.1, x.shape) for n, x in flatten(abstract).items()}
    store.save(tmp_path, unflatten(drawn), {}, np.float32)
    arrays, _ = store.stored(tmp_path)
    chosen = formats("int4")
    importance = precision.importances(arrays, size, chosen)
    assert set(importance) == {n for n in drawn if "layers" in n and n.endswith("kernel")}
    assert precision.importances(arrays, size, formats("int8")) == {}
    assert all((x > 0).all() for x in importance.values())
    # The first layer's attention sees normed embeddings, times the norm's scale.
    scale = drawn["llama/layers/attention_norm/scale"][0]
    seen = importance["llama/layers/attention/key/kernel"][0]
    assert np.corrcoef(np.log(seen), np.log(scale**2))[0, 1] > 0.9
    read: dict[str, np.ndarray] = {}
    for name, x in arrays.items():
        read |= precision.read(name, x, chosen, np.float32, importance.get(name))
    want = held(abstract, chosen, dict.fromkeys(drawn, np.float32))
    assert {n: (x.shape, x.dtype) for n, x in read.items()} == {
        n: (x.shape, x.dtype) for n, x in flatten(want).items()
    }
    assert weights_bytes(unflatten(read)) == weights_bytes(want)
