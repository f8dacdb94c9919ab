"""Floating-point operations of a function, counted in its jaxpr: nothing is compiled or run.

XLA's own analysis counts the body of a loop once and says nothing on GPUs; here a scan's counts
as often as it runs. Only matrix products and convolutions are counted, a multiply-add as two, as
published model FLOPs are. The count is of all devices together.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core


class Product(NamedTuple):
    """Operations of one kind of matrix product: ``scope`` is the slash name of where it stands."""

    scope: str
    flops: int


class Flops(NamedTuple):
    """What a function does. ``loops``: of unknown length, whose bodies are counted once."""

    products: tuple[Product, ...]
    loops: int = 0

    @property
    def total(self) -> int:
        return sum(product.flops for product in self.products)

    def within(self, part: str) -> int:
        """The operations where ``part`` is in the scope, such as "/llama"."""
        return sum(flops for scope, flops in self.products if part in scope)


def count(fn: Callable, *args: Any, **kwargs: Any) -> Flops:
    """The operations of ``fn(*args, **kwargs)``; arguments may be abstract arrays."""
    return count_jaxpr(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def count_jaxpr(jaxpr: core.Jaxpr) -> Flops:
    loops: list[str] = []
    products = tuple(_walk(jaxpr, 1, "", loops))
    return Flops(products, len(loops))


def _walk(jaxpr: Any, times: int, outer: str, loops: list[str]) -> Iterator[Product]:
    for eqn in jaxpr.eqns:
        scope = f"{outer}/{eqn.source_info.name_stack}".strip("/")
        name = eqn.primitive.name
        if name in _PRODUCTS:
            yield Product(scope, times * _PRODUCTS[name](eqn))
        elif name == "cond":  # the branch that does most
            found = [[*_walk(b.jaxpr, times, scope, loops)] for b in eqn.params["branches"]]
            yield from max(found, key=lambda products: sum(p.flops for p in products))
        else:
            if name == "while":
                loops.append(scope)
            for inner in _inner(eqn):
                yield from _walk(inner, times * _repeats(eqn), scope, loops)


def _inner(eqn: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters: of a call, a loop, a rule to differentiate by."""
    for value in eqn.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
            if isinstance(x, core.ClosedJaxpr):
                yield x.jaxpr
            elif isinstance(x, core.Jaxpr):
                yield x


def _repeats(eqn: Any) -> int:
    """How often an equation runs its body: over a scan, over devices, over a kernel's grid."""
    params = eqn.params
    if eqn.primitive.name == "scan":
        return params["length"]
    if eqn.primitive.name == "shard_map":  # shapes within are one device's
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if eqn.primitive.name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _dot_general(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _convolution(eqn: Any) -> int:
    """Every output sees one window of every input channel of its group (the kernel's, then)."""
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    out_channels = kernel[numbers.rhs_spec[0]]
    return 2 * eqn.outvars[0].aval.size * math.prod(kernel) // out_channels


def _fused_attention(products: int) -> Callable[[Any], int]:
    """cuDNN's, of q [B, L, H, K] and k [B, S, G, K]: so many products of L x S x K each."""

    def flops(eqn: Any) -> int:
        q, k = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
        return 2 * products * math.prod(q) * k[1]

    return flops


_PRODUCTS: dict[str, Callable[[Any], int]] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _fused_attention(2),
    "dot_product_attention_bwd_wrapper": _fused_attention(4),
}
