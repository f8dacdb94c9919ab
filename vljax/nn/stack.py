"""Scan over layers, over chunks of frames, and rematerialisation: where all of these appear."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vljax.nn.layers import by_frame, constrain
from vljax.store import Tree, flatten, unflatten

_policies = jax.checkpoint_policies

# What the backward pass keeps of each layer of the language model; the rest is made again. The less
# is kept the more is made again, so take the first that fits. Beside each: its size in inputs of a
# layer, for a frozen one of 7B at 512 tokens. Gradients of frozen weights are not wanted, so that
# inputs of products need not be kept, only what norms, attention and SwiGLU are differentiated at:
# that is "dots_no_batch", and makes again no product but the attention's.
REMAT: dict[str, Any] = {
    "none": None,  # 32.5: everything, the attention's weights among it
    "dots": _policies.checkpoint_dots,  # 14.4: all products, scores too
    "dots_no_batch": _policies.checkpoint_dots_with_no_batch_dims,  # 10.4: those with weights
    "attention": _policies.save_only_these_names("qkv", "attended"),  # 5: not the MLP's
    "full": _policies.nothing_saveable,  # 1: a layer's input
    "offload": _policies.save_and_offload_only_these_names(  # 1, in the host's memory
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_in"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}

# XLA's CPU backend multiplies in float32, and would make a float32 copy of whole stacks of smaller
# weights in front of the loop over layers: up to eight times the memory. This keeps it to a layer.
CPU_OPTIONS = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}

_unrolled: contextvars.ContextVar[bool] = contextvars.ContextVar("unrolled", default=False)


@contextlib.contextmanager
def unrolling(on: bool = True) -> Iterator[None]:
    """Within this context (around a trace) layers are written out one after the other.

    A loop over stacked weights copies each layer's out of the stack, forth and back; written out,
    programs read them where they lie if they are given one by one, and compile as much longer.
    """
    token = _unrolled.set(on)
    try:
        yield
    finally:
        _unrolled.reset(token)


def stack(
    block: type[nn.Module],
    depth: int,
    *,
    shared: int = 0,
    remat: str = "none",
    name: str = "layers",
    **fields: Any,
) -> nn.Module:
    """``depth`` copies of ``block(**fields)`` under ``lax.scan``, as a submodule ``name``.

    Call it as ``stack(...)(x, per_layer, *shared) -> (x, out)``: ``per_layer`` is scanned over its
    leading axis (None for nothing) and ``out`` is stacked, as is what a block sows. Parameters get
    a leading "layers" axis.
    """
    if REMAT[remat] is not None:
        block = nn.remat(block, policy=REMAT[remat], prevent_cse=False)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, *(nn.broadcast for _ in range(shared))),
        length=depth,
        unroll=depth if _unrolled.get() else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(name=name, **fields)


class Apart(nn.Module):
    """Layers one after the other, each with parameters of its own under "0", "1", ...

    What ``stack`` makes, without a stack: ``per_layer`` and ``out`` are tuples. Decoding is reading
    weights, and a loop over a stack would copy each layer's out of it before.
    """

    block: type[nn.Module]
    depth: int
    fields: Mapping[str, Any]

    @nn.compact
    def __call__(
        self, x: jax.Array, per_layer: Sequence[Any] | None, *shared: Any
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        given = [None] * self.depth if per_layer is None else per_layer
        out = []
        for i in range(self.depth):
            x, made = self.block(**self.fields, name=str(i))(x, given[i], *shared)
            out.append(made)
        return x, tuple(out)


def take_apart(stacked: Tree) -> Tree:
    """A stack's parameters as ``Apart`` has them."""
    flat = {f"{i}/{n}": x[i] for n, x in flatten(stacked).items() for i in range(x.shape[0])}
    return unflatten(flat)


def over_frames(
    encoder: nn.Module, encode: Callable[[Any, jax.Array], jax.Array], x: jax.Array, chunk: int = 0
) -> jax.Array:
    """``encode(encoder, [N, ...]) -> [N, ...]`` of x [B, T, ...], frames as rows: [B, T, ...].

    ``chunk``: how many frames of each example go through at once, 0 for all. What it takes then
    grows with the chunk and not with T; sharded weights are gathered once a chunk. The last chunk
    is filled up with zeros.
    """

    def merged(encoder: nn.Module, x: jax.Array) -> jax.Array:
        B, T = x.shape[:2]
        rows = x.reshape(B * T, *x.shape[2:])
        with by_frame():
            y = encode(encoder, constrain(rows, ("frames", *[None] * (rows.ndim - 1))))
        return constrain(y.reshape(B, T, *y.shape[1:]), ("batch", *[None] * y.ndim))

    B, T = x.shape[:2]
    if not 0 < chunk < T:
        return merged(encoder, x)
    chunks = -(-T // chunk)
    room = [(0, 0), (0, chunks * chunk - T)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, room).reshape(B, chunks, chunk, *x.shape[2:])
    scanned = nn.scan(
        lambda encoder, _, x: (None, merged(encoder, x)),
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=1,
        out_axes=1,
    )
    y = scanned(encoder, None, x)[1]
    return y.reshape(B, chunks * chunk, *y.shape[3:])[:, :T]
