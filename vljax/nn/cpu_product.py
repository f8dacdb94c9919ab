"""A CPU's products of some rows with columns in bfloat16, by our own kernel where Numba is there.

XLA:CPU widens such columns in memory, then packs them, for each product anew; decoding is little
else than reading them. Ours reads each column once and widens it in registers.
"""

import functools
import importlib.util
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np

LARGE = 1 << 18  # so many weights are worth a call
FEW = 256  # rows; of more XLA's product is as fast
# XLA's threads share what is ready where that is more than 8; each is to be compiled.
CALLS = min(64, 8 * (os.cpu_count() or 1))
COLUMNS = 16  # of a call, at least


def serves(rows: jax.Array, columns: jax.Array) -> bool:
    """Whether ``product`` can be had of rows [B, in] and columns [out, in], and is the faster."""
    return (
        jax.default_backend() == "cpu"
        and columns.dtype == jnp.bfloat16
        and columns.size >= LARGE
        and len(rows) <= FEW
        and _registered() is not None
    )


def product(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """rows [B, in], bfloat16 columns [out, in] -> [B, out], all in float32. No gradient."""
    name, rows = _registered(), rows.astype(jnp.float32)
    assert name is not None
    each = max(COLUMNS, 2 * -(-len(columns) // (2 * CALLS)))  # even: they are read in pairs

    def part(first: int) -> jax.Array:
        y = jax.ShapeDtypeStruct((len(rows), min(each, len(columns) - first)), jnp.float32)
        return jax.ffi.ffi_call(name, y)(rows, columns, np.int32(first))

    return jnp.concatenate([part(i) for i in range(0, len(columns), each)], axis=1)


@functools.cache
def _registered() -> str | None:
    """The name under which XLA has the kernel, once Numba has compiled it, which takes 2 s."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from vljax.nn.cpu_handler import handler
    except Exception as error:  # whatever a Numba raises that is too old, or for another NumPy
        logging.getLogger(__name__).warning(
            "products in bfloat16 are XLA's, since Numba compiles none: %s", error
        )
        return None
    name = "vljax_rows_by_columns"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler.ctypes), platform="cpu")
    return name
