"""Meshes from strategies."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from vljax.sharding.strategy import Strategy


def make_mesh(strategy: Strategy, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh over all of ``devices``, shaped as the strategy says.

    Raises ValueError when the number of devices is not a multiple of the fixed axes.
    """
    devices = jax.devices() if devices is None else devices
    fixed = math.prod(n for _, n in strategy.mesh if n > 0)
    if len(devices) % fixed:
        raise ValueError(
            f"sharding {strategy.name}: got {len(devices)} devices, expected a multiple of {fixed}"
        )
    shape = [n if n > 0 else len(devices) // fixed for _, n in strategy.mesh]
    if math.prod(shape) != len(devices):
        raise ValueError(
            f"sharding {strategy.name}: got {len(devices)} devices, expected {math.prod(shape)}"
        )
    return jax.sharding.Mesh(np.array(devices).reshape(shape), [name for name, _ in strategy.mesh])
