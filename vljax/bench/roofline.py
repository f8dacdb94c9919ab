"""A bound on the time of a step, from counted work and stated rates. Nothing here is measured."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from vljax.bench.hlo import SLICES, Collective
from vljax.bench.topology import Topology, torus_dimensions

CARDS_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds a step takes at least, by what has to be done.

    ``axes``: of each mesh axis that collectives run over. ``low`` is the longest of the terms, as
    if all the others could be hidden behind it; ``high`` their sum, as if nothing could.
    ``repeated``: what the compiled program computes beyond a device's share of the step: what is
    replicated, or what XLA makes anew for each that uses it. It is in ``high`` only.
    """

    compute: float
    memory: float
    axes: dict[str, float]
    network: float
    repeated: float = 0.0

    @property
    def ici(self) -> float:
        """Over what joins the devices of a slice, or of a host."""
        return sum(self.axes.values())

    @property
    def low(self) -> float:
        return max(self.compute, self.memory, self.ici, self.network)

    @property
    def high(self) -> float:
        return self.compute + self.repeated + self.memory + self.ici + self.network


def bound(
    topology: Topology,
    mesh: Mesh,
    flops: float,
    touched: float,
    found: Sequence[Collective],
    compiled: float = 0.0,
) -> Bound:
    """The bound of a step that does ``flops`` and touches ``touched`` bytes of memory a device.

    ``touched``: what must be read and written at the very least, such as all arguments once.
    ``compiled``: the FLOPs of its program.
    """
    chip = topology.chip
    assert chip is not None, "a CPU has no stated rates"
    axes: dict[str, float] = {}
    network = 0.0
    for one in found:
        rate = axis_rate(topology, mesh, one.axis)
        if rate == chip.network:
            network += one.bytes / rate
        else:
            axes[one.axis] = axes.get(one.axis, 0.0) + one.bytes / rate
    repeated = max(compiled - flops, 0.0) / chip.flops
    return Bound(flops / chip.flops, touched / chip.hbm, axes, network, repeated)


def axis_rate(topology: Topology, mesh: Mesh, axis: str) -> float:
    """Bytes/s at which a device sends along ``axis`` ("fsdp", "fsdp+tensor", "slices").

    On a TPU all links along the torus dimensions that the axis runs over: two a dimension that is
    closed to a ring, one where it is a line. On GPUs NVLink inside a host, else the network.
    """
    chip = topology.chip
    assert chip is not None
    if axis == SLICES:
        return chip.network
    flat = _merged(mesh, axis.split("+"))
    if not chip.is_tpu:
        return chip.link if len({d.process_index for d in flat}) == 1 else chip.network
    spans = torus_dimensions(flat)
    links = sum(2 if chip.wraps and size % chip.wraps == 0 else 1 for _, size in spans)
    return chip.link * max(links, 1)


def _merged(mesh: Mesh, axes: Sequence[str]) -> np.ndarray:
    """The devices along the axes together, the others held at their first."""
    where = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    return mesh.devices[where].reshape(-1)


def assumptions(topology: Topology) -> str:
    """The rates that a bound rests on, in a sentence."""
    chip = topology.chip
    if chip is None:
        return "no rates are stated for a CPU, hence no bound"
    if topology.backend == "cpu":
        return (
            f"{topology.name}: compiled by the CPU's compiler, which gathers and holds otherwise: "
            "meshes and arguments are right, temporaries and collectives are not; hence no bound"
        )
    join = (
        f"ICI {chip.link / 1e9:.0f} GB/s a link and direction, two links a closed torus dimension "
        f"(of {chip.wraps} or its multiples), one otherwise"
        if chip.is_tpu
        else f"NVLink or PCIe {chip.link / 1e9:.0f} GB/s a card inside a host of {CARDS_A_HOST}"
    )
    return (
        f"{chip.name}: {chip.flops / 1e12:.3g} TFLOP/s dense {chip.computes}, memory "
        f"{chip.hbm / 1e9:.0f} GB/s, {join}, network {chip.network / 1e9:.1f} GB/s a device"
    )
