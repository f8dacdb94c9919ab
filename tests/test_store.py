"""Folders of weights, whatever they are called and however they broke."""

import json

import jax
import numpy as np
import pytest

from vljax import store
from vljax.convert.converted import open_converted
from vljax.store import WeightsError

ARRAYS = {"a/b": np.arange(6, dtype=np.float32).reshape(2, 3), "c": np.ones(2, np.float16)}


@pytest.mark.parametrize("name", ["plain", "a b", "a%41b", "a#b?c", "ä"])
def test_folders_of_any_name(tmp_path, name):
    folder = tmp_path / name
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in ARRAYS.items()}
    writer = store.Writer(folder, shapes)
    for array, value in ARRAYS.items():
        writer.write(array, value)
    writer.finish({"size": "tiny"})
    params, manifest = store.load(folder, None)
    assert manifest["size"] == "tiny"
    lazy = open_converted(folder)
    for array, value in ARRAYS.items():
        assert np.array_equal(store.flatten(params)[array], value)
        assert np.array_equal(lazy[array], value)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_manifest_that_is_none(tmp_path, text):
    store.save(tmp_path, store.unflatten(ARRAYS), {})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(WeightsError, match=r"manifest\.json: .*JSON.*; copy it anew"):
        store.load(tmp_path)


@pytest.fixture(scope="module")
def sliced(tmp_path_factory):
    """A folder with a stacked array, a layer a chunk, and one that is written whole."""
    folder = tmp_path_factory.mktemp("sliced") / "weights"
    rng = np.random.default_rng(0)
    values = {"stack": rng.normal(size=(4, 6, 8)).astype(np.float16), "one": np.float32(3)}
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in values.items()}
    writer = store.Writer(folder, shapes)
    for i, layer in enumerate(values["stack"]):
        writer.write("stack", layer, i)
    writer.write("one", np.asarray(values["one"]))
    writer.finish({})
    return folder, values


SPECS = [(), ("data",), (None, "data"), (None, "model", "data"), (("data", "model"),)]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("limit", [store.SLICED, 0])
def test_arrays_go_from_the_disk_to_a_mesh(sliced, monkeypatch, spec, limit):
    monkeypatch.setattr(store, "SLICED", limit)
    folder, values = sliced
    mesh = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    array = store.stored(folder)[0]["stack"].put(where, np.float32)
    assert array.sharding == where and array.dtype == np.float32
    np.testing.assert_array_equal(array, values["stack"].astype(np.float32))
    scalar = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert float(store.stored(folder)[0]["one"].put(scalar)) == 3


@pytest.mark.parametrize("spec", [(), (None, "data"), (None, None, "model")])
def test_the_host_holds_a_slice_at_a_time(sliced, monkeypatch, spec):
    """Of what goes to devices, and of what is taken apart."""
    monkeypatch.setattr(store, "SLICED", 0)
    taken, aligned = [], store._aligned
    monkeypatch.setattr(
        store, "_aligned", lambda shape, dtype: taken.append(shape) or aligned(shape, dtype)
    )
    folder, values = sliced
    mesh = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    stack = store.stored(folder)[0]["stack"]
    stack.put(where)
    assert taken == [(1, 6, 8)] * 4
    slices = [one.read() for one in stack.slices()]
    assert taken[4:] == [(6, 8)] * 4
    np.testing.assert_array_equal(slices, values["stack"])


def test_what_is_in_one_chunk_is_taken_apart_too(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    store.save(tmp_path, {"x": values}, {})
    one = list(store.stored(tmp_path)[0]["x"].slices())
    np.testing.assert_array_equal([x.read() for x in one], values)
    np.testing.assert_array_equal(one[1].read(None, [slice(1, 3), slice(0, 1)]), values[1, 1:, :1])


def test_only_what_is_asked_for_is_read(sliced):
    folder, values = sliced
    box = [slice(1, 3), slice(0, 6), slice(2, 5)]
    array = store.stored(folder)[0]["stack"]
    np.testing.assert_array_equal(array.read(None, box), values["stack"][1:3, :, 2:5])


def test_a_manifest_tells_the_digest_of_each_array(sliced, tmp_path):
    """Of those written in slices, too; and without it they are made of what is there."""
    folder, values = sliced
    store.save(tmp_path, store.unflatten(values), {})
    digests = {n: x.digest() for n, x in store.stored(folder)[0].items()}
    assert digests == store.read_manifest(tmp_path)["digests"]
    manifest = store.read_manifest(tmp_path)
    del manifest["digests"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    arrays = store.stored(tmp_path)[0]
    assert {n: x.noted for n, x in arrays.items()} == {"stack": None, "one": None}
    assert {n: x.digest() for n, x in arrays.items()} == digests


def test_a_folder_whose_writing_was_cut_short_holds_none(sliced, tmp_path, monkeypatch):
    """Even where it held some before: their manifest is gone before they are."""
    store.save(tmp_path, store.unflatten(sliced[1]), {})
    monkeypatch.setattr(store, "write_manifest", lambda *_: None)
    store.save(tmp_path, store.unflatten(ARRAYS), {})
    with pytest.raises(WeightsError, match=r"got no manifest\.json"):
        store.load(tmp_path)
