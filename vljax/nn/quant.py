"""Weight-only quantisation: frozen kernels held in 8 or 4 bits, multiplied in the compute dtype.

A quantised kernel is a dict in the kernel's place, so that trees, scans over layers and placements
need not know of it::

    {"int8": [..., in, out], "scale": [..., 1, out]}                      one scale a column
    {"int4": [..., in, out], "scale" and "middle": [..., in / group, out]}

and stands for ``integer * scale (+ middle)``. ``int4`` takes four bits on every backend.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Quantised = dict[str, Any]  # arrays, or abstract ones


@dataclasses.dataclass(frozen=True)
class Format:
    """Integers of ``bits``; every ``group`` of inputs of a column has its own scale.

    A ``group`` of 0 is the whole column, whose scale is symmetric around zero; otherwise a group
    has a middle, too.
    """

    name: str
    bits: int
    group: int = 0

    @property
    def parts(self) -> tuple[tuple[str, Any], ...]:
        """Names and dtypes of a quantised kernel's arrays, the integers' first."""
        if not self.group:
            return (self.name, jnp.dtype(self.name)), ("scale", jnp.dtype("float32"))
        fine = jnp.dtype("bfloat16")
        return (self.name, jnp.dtype(self.name)), ("scale", fine), ("middle", fine)


FORMATS = {"int8": Format("int8", 8), "int4": Format("int4", 4, 64)}
SHRINKS = (1.0, 0.9, 0.8)  # of a group's range, to begin with: its outermost numbers may be cut
REFITS = 3
TINY = 1e-12  # so that inputs that are always zero leave a mean to be taken


def group_size(rows: int, form: Format) -> int:
    """How many of a column's rows share a scale: as many of a ``form.group`` as divide them."""
    return math.gcd(rows, form.group)  # of 0: rows


def shapes(shape: tuple[int, ...], form: Format) -> dict[str, jax.ShapeDtypeStruct]:
    """What a kernel of ``shape`` [..., in, out] becomes."""
    *lead, rows, columns = shape
    groups = rows // group_size(rows, form)
    (integers, dtype), *rest = form.parts
    fine = {name: jax.ShapeDtypeStruct((*lead, groups, columns), kind) for name, kind in rest}
    return {integers: jax.ShapeDtypeStruct(shape, dtype)} | fine


@functools.partial(jax.jit, static_argnames="form")
def quantise(kernel: jax.Array, form: Format, importance: jax.Array | None = None) -> Quantised:
    """A kernel [..., in, out] in ``form``.

    ``importance`` [..., in]: the mean square of each input, by which errors of its row count.
    """
    made = _columns(kernel, form) if not form.group else _groups(kernel, form, importance)
    return {name: x.astype(dtype) for x, (name, dtype) in zip(made, form.parts, strict=True)}


def dequantise(kernel: Quantised) -> jax.Array:
    """The float32 kernel [..., in, out] that a quantised one stands for."""
    integers = kernel["int8"] if "int8" in kernel else kernel["int4"]
    scale = kernel["scale"].astype(jnp.float32)
    *lead, groups, columns = scale.shape
    x = integers.astype(jnp.float32).reshape(*lead, groups, -1, columns) * scale[..., None, :]
    if "middle" in kernel:
        x = x + kernel["middle"].astype(jnp.float32)[..., None, :]
    return x.reshape(integers.shape)


def multiply(x: jax.Array, kernel: jax.Array | Mapping[str, Any]) -> jax.Array:
    """x [..., in] @ kernel [in, out], quantised or not: [..., out] in x's dtype."""
    if not isinstance(kernel, Mapping):
        return x @ kernel.astype(x.dtype)
    return _multiply(x, dict(kernel))


# Whatever the remat policy, the backward pass makes the float kernel anew: kept for it by all
# layers of a scan, they would be the float model.
@functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False
)
def _multiply(x: jax.Array, kernel: Quantised) -> jax.Array:
    if "int8" in kernel:  # integers up to 127 are exact in bfloat16, too
        y = x @ kernel["int8"].astype(x.dtype)
        return (y * kernel["scale"][0]).astype(x.dtype)
    return x @ dequantise(kernel).astype(x.dtype)


def _columns(kernel: jax.Array, form: Format) -> tuple[jax.Array, jax.Array]:
    """Integers and scales; the largest magnitude of a column is the largest integer."""
    x = kernel.astype(jnp.float32)
    most = 2 ** (form.bits - 1) - 1
    scale = _nonzero(jnp.abs(x).max(-2, keepdims=True) / most)
    return jnp.round(x / scale), scale


class Fit(NamedTuple):
    """[..., groups, group or 1, columns] each; ``error`` is a mean square."""

    integers: jax.Array
    scale: jax.Array
    middle: jax.Array
    error: jax.Array


def _groups(
    kernel: jax.Array, form: Format, importance: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Integers, scales and middles of least squared error, of a few begun with and refitted.

    Given the integers, a group's best scale and middle are a straight line through its numbers;
    given those, the best integers are the nearest. Both are done in turns.
    """
    *lead, rows, columns = kernel.shape
    group = group_size(rows, form)
    split = *lead, rows // group, group
    x = kernel.astype(jnp.float32).reshape(*split, columns)
    weight = jnp.ones(split) if importance is None else importance.reshape(split) + TINY
    weight = (weight / weight.sum(-1, keepdims=True))[..., None]
    low, high = x.min(-2, keepdims=True), x.max(-2, keepdims=True)
    half = 2 ** (form.bits - 1)

    def mean(y: jax.Array) -> jax.Array:
        return (weight * y).sum(-2, keepdims=True)

    def rounded(scale: jax.Array, middle: jax.Array) -> Fit:
        """With scale and middle as they will be held."""
        scale, middle = (y.astype(jnp.bfloat16).astype(jnp.float32) for y in (scale, middle))
        scale = _nonzero(scale)
        integers = jnp.clip(jnp.round((x - middle) / scale), -half, half - 1)
        error = mean((integers * scale + middle - x) ** 2)
        return Fit(integers, scale, middle, error)

    def refit(_: int, best: Fit) -> Fit:
        offset = best.integers - mean(best.integers)
        scale = mean(offset * x) / _nonzero(mean(offset**2))
        middle = mean(x) - scale * mean(best.integers)
        return _better(best, rounded(scale, middle))

    def begin(best: Fit, shrink: jax.Array) -> tuple[Fit, None]:
        scale = (high - low) * shrink / (2 * half - 1)
        begun = rounded(scale, (low + high) / 2 + scale / 2)
        return _better(best, jax.lax.fori_loop(0, REFITS, refit, begun)), None

    nothing = Fit(jnp.zeros_like(x), low, low, jnp.full_like(low, jnp.inf))
    best, _ = jax.lax.scan(begin, nothing, jnp.array(SHRINKS))
    return best.integers.reshape(kernel.shape), best.scale[..., 0, :], best.middle[..., 0, :]


def _better(a: Fit, b: Fit) -> Fit:
    """Group by group the one of smaller error."""
    return Fit(*(jnp.where(b.error < a.error, q, p) for p, q in zip(a, b, strict=True)))


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1.0, x)
