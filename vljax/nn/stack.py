"""Scan over layers, over chunks of frames, and rematerialisation: where all of these appear."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vljax.nn.layers import constrain

_policies = jax.checkpoint_policies

# What the backward pass keeps of each layer of the language model; the rest is made again. The
# smaller the memory the more is made again, so take the first that fits. A frozen layer needs no
# input of its products for gradients of weights, only what its norms, attention and SwiGLU are
# differentiated at: keeping more than "dots_no_batch" is of no use to it.
REMAT: dict[str, Any] = {
    "none": None,  # everything, the attention's weights among it
    "dots": _policies.checkpoint_dots,  # all products, scores too
    "dots_no_batch": _policies.checkpoint_dots_with_no_batch_dims,  # products with weights
    "attention": _policies.save_only_these_names("qkv", "attended"),  # not the MLP's, its most
    "full": _policies.nothing_saveable,  # a layer's input
    "offload": _policies.save_and_offload_only_these_names(  # that in the host's memory
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_in"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


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
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(name=name, **fields)


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
