"""Our own product on a CPU, against numpy's in double precision and against XLA's."""

import importlib.util
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.generate import loading
from vljax.models.sizes import TINY
from vljax.models.video_llama import VideoLlama
from vljax.nn import cpu_product, layers
from vljax.store import unflatten

pytest.importorskip("numba")


def drawn(rows, inputs, outputs):
    keys = jax.random.split(jax.random.key(rows * inputs + outputs))
    x = jax.random.normal(keys[0], (rows, inputs))
    return x, jax.random.normal(keys[1], (outputs, inputs), jnp.bfloat16)


# Rows in fours and the rest; columns in pairs and the rest; inputs that fill no register.
@pytest.mark.parametrize("rows", [1, 3, 4, 21])
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 1000), (450, 999), (3, 17), (8, 1)])
def test_is_the_product(rows, inputs, outputs):
    x, columns = drawn(rows, inputs, outputs)
    exact = np.asarray(x, np.float64) @ np.asarray(columns, np.float64).T
    y = jax.jit(cpu_product.product)(x, columns)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, exact, atol=1e-5 * np.sqrt(inputs))


def test_in_a_loop_of_many_threads():
    x, columns = drawn(5, 512, 512)
    columns = (columns / 512**0.5).astype(jnp.bfloat16)

    def repeated(multiply):
        return jax.jit(lambda x: jax.lax.fori_loop(0, 8, lambda i, x: multiply(x, columns), x))(x)

    theirs = repeated(lambda x, w: jnp.dot(x, w.T.astype(jnp.float32), precision="highest"))
    ours = [repeated(cpu_product.product) for _ in range(5)]
    assert all((one == ours[0]).all() for one in ours)
    np.testing.assert_allclose(ours[0], theirs, atol=1e-4)


def test_serves_large_columns_in_bfloat16_of_few_rows():
    x, columns = drawn(1, 512, 512)
    assert cpu_product.serves(x, columns)
    assert not cpu_product.serves(x, columns.astype(jnp.float32))
    assert not cpu_product.serves(x, columns[:511])
    assert not cpu_product.serves(jnp.ones((257, 512)), columns)


@pytest.fixture
def anew():
    """The kernel is looked for again, here and after the test."""
    cpu_product._registered.cache_clear()
    yield
    cpu_product._registered.cache_clear()


def test_without_numba_products_are_xla_s(anew, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not cpu_product.serves(*drawn(1, 512, 512))


def test_a_numba_that_fails_is_told_and_products_are_xla_s(anew, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vljax.nn.cpu_handler", None)  # can't be imported
    x, columns = drawn(1, 512, 512)
    y = layers.by_columns(x, columns)
    np.testing.assert_allclose(y, x @ columns.T.astype(jnp.float32), atol=0.5)
    assert "since Numba compiles none" in caplog.text


def test_what_learns_or_is_split_is_left_to_xla(monkeypatch):
    x, columns = drawn(1, 512, 512)
    calls = SimpleNamespace(own=0)

    def counted(rows, columns):
        calls.own += 1
        return rows @ columns.T.astype(jnp.float32)

    monkeypatch.setattr(cpu_product, "product", counted)
    layers.by_columns(x, columns)
    assert calls.own == 1
    layers.by_columns(x, columns, answering=False)
    with layers.constraining(lambda x, axes: x):
        layers.by_columns(x, columns)
    assert calls.own == 1


def test_a_model_s_hidden_states_are_xla_s(monkeypatch):
    held = loading.held(TINY, "bfloat16", (), None, lambda name: name.startswith("llama/"))
    rng = np.random.default_rng(0)
    arrays = {n: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype) for n, x in held.items()}
    params = {"params": unflatten(loading.joined(arrays))}
    model, mask = VideoLlama(TINY, apart=True), jnp.ones((2, 7), bool)
    x = rng.normal(size=(2, 7, TINY.llama.width)).astype(np.float32)
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)

    def hidden(rows):
        return model.apply(params, rows, mask[: len(rows)], method=lambda m, *a: m.llama(*a)[0])

    theirs = hidden(x)
    monkeypatch.setattr(cpu_product, "LARGE", 0)
    ours = hidden(x)
    assert (ours != theirs).any()  # it was ours that computed them
    # XLA's rounds rows to bfloat16, ours does not.
    assert float(jnp.abs(ours - theirs).mean()) < 0.02 * float(jnp.abs(theirs).mean())
    np.testing.assert_allclose(hidden(x[:1]), ours[:1], atol=1e-4)
