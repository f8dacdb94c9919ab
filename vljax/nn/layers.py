"""Parameterised layers whose every parameter names its logical axes."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vljax.nn import cpu_product
from vljax.nn.quant import multiply

Axes = tuple[str | None, ...]
Initializer = Callable[..., Any]  # returns an array boxed with its logical names
Constraint = Callable[[jax.Array, Axes], jax.Array]

_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar(
    "constraint", default=None
)


@contextlib.contextmanager
def constraining(constraint: Constraint) -> Iterator[None]:
    """Within this context (around a trace), ``constrain`` applies ``constraint``.

    The rules come from outside as data, so that models only name logical axes; use one fresh
    ``jax.jit`` a set of rules, since they are not part of its cache key.
    """
    token = _constraint.set(constraint)
    try:
        yield
    finally:
        _constraint.reset(token)


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Names the logical axes of an activation; the identity outside ``constraining``."""
    constraint = _constraint.get()
    return x if constraint is None else constraint(x, axes)


_by_frame: contextvars.ContextVar[bool] = contextvars.ContextVar("by_frame", default=False)


@contextlib.contextmanager
def by_frame() -> Iterator[None]:
    """Within this context (around a trace) rows are frames, split over every axis of the mesh."""
    token = _by_frame.set(True)
    try:
        yield
    finally:
        _by_frame.reset(token)


def gathered(kernel: Any, axes: Axes) -> Any:
    """A kernel, quantised or not, as products want it: whole along "embed", which FSDP splits.

    Gathered once for all that use it. Of a split kernel XLA makes a ring in each product, and the
    backward pass of a rematerialised layer has two of them. Where rows are frames it is whole
    along all axes: there are so many frames that sums over a tensor axis would cost thirty times
    what its weights do.
    """
    whole = tuple(None if axis == "embed" or _by_frame.get() else axis for axis in axes)
    return jax.tree.map(lambda x: constrain(x, whole), kernel)


def by_columns(x: jax.Array, turned: jax.Array, answering: bool = True) -> jax.Array:
    """x [..., in] and a kernel's columns [out, in] -> [..., out] in x's dtype, summed in float32.

    Where nothing is split and nothing learns (``answering``) a CPU does it by ``cpu_product``, or
    by XLA, which reads float32 columns faster than a kernel's rows.
    """
    rows = x.reshape(-1, x.shape[-1])
    if answering and _constraint.get() is None and cpu_product.serves(rows, turned):
        y = cpu_product.product(rows, turned)
    else:
        y = _by_xla(rows.astype(turned.dtype), turned)
    return y.astype(x.dtype).reshape(*x.shape[:-1], len(turned))


def _by_xla(rows: jax.Array, turned: jax.Array) -> jax.Array:
    """Of one row XLA:CPU would multiply halves ten times slower than of two."""
    alone = len(rows) == 1 and turned.dtype == jnp.bfloat16
    rows = jnp.pad(rows, ((0, 1), (0, 0))) if alone else rows
    contract = ((1,), (1,)), ((), ())
    y = jax.lax.dot_general(rows, turned, contract, preferred_element_type=jnp.float32)
    return y[:1] if alone else y


# Kernels that meet the same input may be given as one of all their columns: a product of few rows
# is reading, and a large kernel is read faster than small ones one by one.
QKV, GATE_UP = "query_key_value", "gate_up"
JOINED = {QKV: ("query", "key", "value"), GATE_UP: ("gate", "up")}

# Names of an activation's first two axes, [B, L]: whose rows these are, and whether L is split.
LEAD: Axes = ("batch", None)


def normal(std: float, axes: Axes) -> Initializer:
    """A N(0, std) initialiser whose parameter carries the logical names ``axes``."""
    return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


def zeros(axes: Axes) -> Initializer:
    return nn.with_logical_partitioning(nn.initializers.zeros, axes)


def ones(axes: Axes) -> Initializer:
    return nn.with_logical_partitioning(nn.initializers.ones, axes)


class Dense(nn.Module):
    """``x @ kernel + bias``: [..., in] -> [..., features]. ``axes`` names the kernel's two axes.

    The kernel that it is given may be quantised, see ``nn.quant``; or it is given ``turned``.
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool = True
    std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(self.dtype)
        if self.has_variable("params", "turned"):
            y = by_columns(x, self.get_variable("params", "turned"))
        else:
            kernel = self.param("kernel", normal(self.std, self.axes), (x.shape[-1], self.features))
            y = multiply(x, gathered(kernel, self.axes))
        if self.use_bias:
            bias = self.param("bias", zeros(self.axes[1:]), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


class LayerNorm(nn.Module):
    """Layer norm computed in float32 and returned in the input's dtype. Always name ``eps``."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", ones(("norm",)), x.shape[-1:])
        bias = self.param("bias", zeros(("norm",)), x.shape[-1:])
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.eps)
        return (y * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """LLaMA's norm, computed in float32 and returned in the input's dtype."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", ones(("norm",)), x.shape[-1:])
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


class MLP(nn.Module):
    """Dense, exact (erf) GELU, Dense."""

    hidden: int
    dtype: jnp.dtype = jnp.float32
    lead: Axes = LEAD

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = Dense(self.hidden, ("embed", "mlp"), dtype=self.dtype, name="fc1")(x)
        h = constrain(jax.nn.gelu(h, approximate=False), (*self.lead, "act_mlp"))
        return Dense(x.shape[-1], ("mlp", "embed"), dtype=self.dtype, name="fc2")(h)


class GatedMLP(nn.Module):
    """LLaMA's SwiGLU: ``down(silu(gate(x)) * up(x))``, no biases."""

    hidden: int
    dtype: jnp.dtype = jnp.float32
    lead: Axes = LEAD

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features: int, axes: tuple[str, str], name: str) -> Dense:
            return Dense(features, axes, use_bias=False, dtype=self.dtype, name=name)

        if self.has_variable("params", GATE_UP):
            gate, up = jnp.split(dense(2 * self.hidden, ("embed", "mlp"), GATE_UP)(x), 2, axis=-1)
        else:
            gate, up = (dense(self.hidden, ("embed", "mlp"), n)(x) for n in JOINED[GATE_UP])
        h = jax.nn.silu(gate) * up
        h = constrain(h, (*self.lead, "act_mlp"))
        return dense(x.shape[-1], ("mlp", "embed"), "down")(h)


class Table(nn.Module):
    """A learned table of ``rows`` vectors, such as token or position embeddings."""

    rows: int
    width: int
    axes: tuple[str, str] = ("rows", "embed")
    std: float = 0.02

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("embedding", normal(self.std, self.axes), (self.rows, self.width))


class PatchConv(nn.Module):
    """Strided convolution of an image into a row of tokens.

    [B, height, width, channels] -> [B, P, features], patches row-major. With ``temporal`` > 1 the
    kernel has that many time slices, which a still image meets all at once: they are summed
    (ImageBind's Conv3d over repeated frames).
    """

    features: int
    kernel: int
    stride: int
    temporal: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape: Sequence[int] = (self.kernel, self.kernel, x.shape[-1], self.features)
        axes: Axes = (None, None, None, "embed")
        if self.temporal > 1:
            shape, axes = (self.temporal, *shape), (None, *axes)
        kernel = self.param("kernel", normal(0.02, axes), shape)
        if self.temporal > 1:
            kernel = kernel.sum(0)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            y = y + self.param("bias", zeros(("embed",)), (self.features,)).astype(self.dtype)
        return y.reshape(y.shape[0], -1, self.features)
