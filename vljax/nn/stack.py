"""Scan over layers and rematerialisation: the one place where both appear."""

from typing import Any

import flax.linen as nn
import jax

REMAT: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots,
    "dots_no_batch": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
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
