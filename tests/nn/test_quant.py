"""Quantised kernels: how near they are, what they take, and that Dense multiplies by them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.nn import quant
from vljax.nn.layers import Dense
from vljax.nn.quant import FORMATS
from vljax.nn.stack import stack

ROWS, COLUMNS = 128, 48
INT4 = FORMATS["int4"]


@pytest.fixture(scope="module")
def kernel() -> np.ndarray:
    """Columns of very different sizes, one of zeros."""
    x = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)) * np.logspace(-6, 2, COLUMNS)
    x[:, 5] = 0
    return x.astype(np.float32)


def grouped(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).reshape(-1, INT4.group, x.shape[-1])


def test_int8_is_within_half_a_step(kernel):
    made = quant.quantise(kernel, FORMATS["int8"])
    step = np.abs(kernel).max(0) / 127
    assert (np.abs(quant.dequantise(made) - kernel) <= step * 0.5001).all()
    assert np.abs(made["int8"]).max() == 127


def test_int4_is_nearer_than_plain_rounding(kernel):
    """Between a group's least and greatest number, in 15 steps."""
    x = grouped(kernel)
    low, step = x.min(1, keepdims=True), np.ptp(x, axis=1, keepdims=True) / 15
    plain = np.round((x - low) / np.where(step == 0, 1, step)) * step + low
    plain = ((plain - x) ** 2).sum(1)
    error = ((grouped(quant.dequantise(quant.quantise(kernel, INT4))) - x) ** 2).sum(1)
    assert (error <= plain * 1.02).all()  # 1.02: scales are bfloat16
    assert np.mean(error[plain > 0] / plain[plain > 0]) < 0.9


def test_numbers_on_a_grid_come_back():
    rng = np.random.default_rng(1)
    integers = rng.integers(-8, 8, (2, ROWS, COLUMNS))
    integers[:, :: INT4.group], integers[:, 1 :: INT4.group] = -8, 7
    x = integers * 0.25 + 0.5
    np.testing.assert_array_equal(quant.dequantise(quant.quantise(x, INT4)), x)


def test_an_important_input_is_kept_more_exactly(kernel):
    importance = np.ones(ROWS, np.float32)
    importance[7] = 1e4
    error = [
        np.abs(quant.dequantise(quant.quantise(kernel, INT4, w)) - kernel)[7].sum()
        for w in (None, importance)
    ]
    assert error[1] < 0.2 * error[0]


@pytest.mark.parametrize("name", FORMATS)
def test_layers_are_quantised_each_on_its_own(kernel, name):
    both = quant.quantise(np.stack([kernel, kernel[::-1]]), FORMATS[name])
    one = quant.quantise(kernel[::-1], FORMATS[name])
    assert {n: x.shape for n, x in both.items()} == {
        n: x.shape for n, x in quant.shapes((2, ROWS, COLUMNS), FORMATS[name]).items()
    }
    for part, x in one.items():
        np.testing.assert_array_equal(both[part][1], x)
        assert x.dtype == quant.shapes(kernel.shape, FORMATS[name])[part].dtype


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_integers_take_their_bits(name, bits):
    x = jax.ShapeDtypeStruct((4096, 64), jnp.dtype(name))
    memory = jax.jit(lambda x: x.astype(jnp.float32).sum()).lower(x).compile().memory_analysis()
    assert memory.argument_size_in_bytes == 4096 * 64 * bits // 8


def test_groups_are_smaller_where_they_would_not_fill_a_column():
    shapes = {rows: quant.shapes((3, rows, 8), INT4)["scale"].shape for rows in (256, 352, 32)}
    assert shapes == {256: (3, 4, 8), 352: (3, 11, 8), 32: (3, 1, 8)}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_multiplies_by_what_the_kernel_stands_for(kernel, name, dtype):
    made = quant.quantise(kernel / np.abs(kernel).max(), FORMATS[name])
    plain = quant.dequantise(made)
    dense = Dense(COLUMNS, ("embed", "mlp"), use_bias=False, dtype=jnp.dtype(dtype))
    rng = np.random.default_rng(2)
    x, weights = rng.normal(size=(3, 5, ROWS)), rng.normal(size=(3, 5, COLUMNS))

    def call(x: jax.Array, kernel: dict | jax.Array) -> jax.Array:
        return (dense.apply({"params": {"kernel": kernel}}, x) * weights).sum()

    tolerance = 1e-5 if dtype == "float32" else 3e-2
    for got, want in zip(
        jax.value_and_grad(call)(x, made), jax.value_and_grad(call)(x, plain), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, per_layer: None) -> tuple[jax.Array, None]:
        return jnp.tanh(Dense(x.shape[-1], ("embed", "mlp"), name="dense")(x)), None


@pytest.mark.parametrize("name", FORMATS)
def test_layers_keep_no_float_kernels_for_the_backward_pass(name):
    """Of eight scanned layers it needs activations alone."""
    depth, width = 8, 128
    model = stack(Block, depth)
    params = nn.unbox(model.init(jax.random.key(0), jnp.ones((1, width)), None)["params"])
    params["dense"]["kernel"] = quant.quantise(params["dense"]["kernel"], FORMATS[name])

    def loss(x: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x, None)[0].sum()

    x = jnp.linspace(-1, 1, width)[None]
    _, backward = jax.vjp(loss, x)
    held = [x for x in jax.tree.leaves(backward) if x.dtype == jnp.float32]
    assert sum(x.size for x in held) < 0.2 * depth * width**2
    plain = {"dense": params["dense"] | {"kernel": quant.dequantise(params["dense"]["kernel"])}}
    want = jax.grad(lambda x: model.apply({"params": plain}, x, None)[0].sum())(x)
    np.testing.assert_allclose(backward(jnp.float32(1))[0], want, atol=1e-5)
