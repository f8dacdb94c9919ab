"""Meshes from strategies."""

import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from vljax.sharding.strategy import REST, SLICES, Strategy

Sizes = dict[str, int]  # of the mesh's axes, in their order


def make_mesh(strategy: Strategy, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh over all of ``devices``, shaped as the strategy says.

    The first axis, "data", counts the slices slowest, so that the others stay inside one; there
    they follow a TPU's torus. Raises ValueError when the sizes do not make up the devices.
    """
    devices = jax.devices() if devices is None else devices
    groups = by_slice(strategy, devices)
    sizes = mesh_sizes(strategy, len(devices), len(groups))
    first, *rest = sizes.values()
    if first % len(groups):
        raise ValueError(
            f"sharding {strategy.name}: got data={first}, expected a multiple of the "
            f"{len(groups)} slices, which it alone spans"
        )
    arranged = [_arrange((first // len(groups), *rest), group) for group in groups]
    return jax.sharding.Mesh(np.concatenate(arranged), list(sizes))


def by_slice(strategy: Strategy, devices: Sequence[jax.Device]) -> list[Sequence[jax.Device]]:
    """The devices of each slice.

    A TPU's tell theirs; others are cut in their order where the strategy says into how many.
    """
    told = {d.id: getattr(d, "slice_index", None) or 0 for d in devices}
    found = sorted(set(told.values())) if devices[0].platform == "tpu" else [0]
    slices = strategy.slices or len(found)
    if len(found) > 1 and slices != len(found):
        raise ValueError(
            f"sharding {strategy.name}: got slices={slices}, expected {len(found)}, as the devices "
            "tell"
        )
    if len(devices) % slices:
        raise ValueError(
            f"sharding {strategy.name}: got {len(devices)} devices, expected a multiple of "
            f"{slices} slices"
        )
    if len(found) > 1:
        return [[d for d in devices if told[d.id] == i] for i in found]
    each = len(devices) // slices
    return [devices[i : i + each] for i in range(0, len(devices), each)]


def mesh_sizes(strategy: Strategy, devices: int, slices: int = 1) -> Sizes:
    """The mesh's axes on so many devices. Raises ValueError when these do not make it up."""
    sizes = {axis: slices if n == SLICES else n for axis, n in strategy.mesh}
    fixed = math.prod(n for n in sizes.values() if n != REST)
    if devices % fixed:
        raise ValueError(
            f"sharding {strategy.name}: got {devices} devices, expected a multiple of {fixed}"
        )
    sizes = {axis: devices // fixed if n == REST else n for axis, n in sizes.items()}
    if math.prod(sizes.values()) != devices:
        raise ValueError(
            f"sharding {strategy.name}: got {devices} devices, expected {math.prod(sizes.values())}"
        )
    return sizes


def meshes(strategy: Strategy, devices: int) -> Iterator[Sizes]:
    """All meshes of the strategy's axes that so many devices make up."""
    axes = list(dict(strategy.mesh))
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for sizes in itertools.product(divisors, repeat=len(axes)):
        if math.prod(sizes) == devices:
            yield dict(zip(axes, sizes, strict=True))


def _arrange(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.array(devices).reshape(shape)
