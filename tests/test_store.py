"""Folders of weights, whatever they are called and however they broke."""

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
