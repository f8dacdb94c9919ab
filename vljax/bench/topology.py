"""Machines that are not here: described to the compiler by a name such as ``v5e:4x4``."""

import contextlib
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vljax.sharding.chips import CHIPS, Chip, chip_of

# libtpu looks for the metadata server of a TPU VM, and locks itself, unless told not to.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """``devices`` of a ``chip``; ``backend`` is who compiles for them: tpu, cuda or cpu.

    The cpu back end may stand in for the chip's own compiler. ``here``: the devices are this
    machine's own, and can run what was compiled.
    """

    name: str
    chip: Chip | None
    backend: str
    slices: int
    devices: tuple[Any, ...] = dataclasses.field(repr=False)
    here: bool = False

    @property
    def chips(self) -> int:
        """Of some TPUs the compiler counts each as two devices."""
        return len(self.devices) // (CHIPS[self.chip.name].cores if self.chip else 1)


class MissingCompiler(ValueError):
    """The compiler of a chip is not installed."""


def describe(name: str) -> Topology:
    """The topology of a name: CHIP:AxB[xC], with ``*N`` for N slices joined by the network.

    TPU names give the torus, ``v5p:4x4x4``; GPU names slices x hosts x cards, ``h100:1x2x8``;
    ``cpu:8`` is this machine's processor as eight devices, ``v5e:4x4@cpu`` as so many that have
    a v5e's memory. Raises ValueError for a name that is not one, and for a torus that the chip
    does not come in; MissingCompiler.
    """
    asked = _parsed(name)
    chip, shape, slices = asked.chip, asked.shape, asked.slices
    if chip is None or asked.by_cpu:
        return Topology(name, chip and chip.core, "cpu", slices, cpu_devices(asked.count))
    if chip.is_tpu:
        return Topology(name, chip.core, "tpu", slices, _tpu_devices(name, chip, shape, slices))
    if slices > 1:
        first, *others = _ints(shape)
        meant = "x".join(str(n) for n in (slices * first, *others))
        raise ValueError(
            f"topology: got {name!r}, expected a GPU's slices as the first number: "
            f"{chip.name}:{meant}"
        )
    from vljax.bench.cuda import cuda_devices

    return Topology(name, chip, "cuda", slices, cuda_devices(chip, shape))


def reserve(names: Iterable[str]) -> None:
    """Has JAX begin with CPU devices for the largest of them, which it can't add later on.

    To be called before several are described, each of which the CPU's compiler may stand in for.
    """
    _reserve(max(_parsed(name).count for name in names))


def _reserve(count: int) -> None:
    with contextlib.suppress(RuntimeError):  # it has begun
        jax.config.update("jax_num_cpu_devices", max(count, jax.config.jax_num_cpu_devices))


@dataclasses.dataclass(frozen=True)
class _Parsed:
    chip: Chip | None
    shape: str
    slices: int
    by_cpu: bool

    @property
    def count(self) -> int:
        """Devices."""
        return math.prod(_ints(self.shape)) * self.slices * (self.chip.cores if self.chip else 1)


def _parsed(name: str) -> _Parsed:
    match = re.fullmatch(r"([a-z0-9_]+):(\d+(?:x\d+)*)(?:\*(\d+))?(@cpu)?", name)
    if not match or (match[1] not in CHIPS and match[1] != "cpu"):
        raise ValueError(
            f"topology: got {name!r}, expected CHIP:SHAPE such as {near(name)}; chips: "
            f"{', '.join([*CHIPS, 'cpu'])}; v5e:16x16*2 is two slices"
        )
    return _Parsed(CHIPS.get(match[1]), match[2], int(match[3] or 1), bool(match[4]))


def at_hand() -> Topology:
    """The devices that JAX finds."""
    devices = tuple(jax.devices())
    chip = chip_of(devices[0].device_kind)
    backend = {"gpu": "cuda"}.get(devices[0].platform, devices[0].platform)
    slices = len({getattr(d, "slice_index", None) or 0 for d in devices})
    name = f"{chip.name if chip else backend}:{len(devices)}"
    return Topology(name, chip, backend, slices, devices, here=True)


def near(name: str) -> str:
    """Topologies that somebody may have meant who wrote ``name``."""
    chip = re.match(r"(?:[a-z]+\d+[a-z_]*)?", name.lower())[0]  # type: ignore[index]
    numbers = re.findall(r"\d+", name[len(chip) :])
    chip = "v5e" if chip.startswith("v5l") else chip
    known = difflib.get_close_matches(chip, CHIPS, 1, 0.5)
    if not known:
        return "v5e:4x4, v5p:4x4x4, h100:1x1x8"
    count = math.prod(int(n) for n in numbers) or 1
    shapes = _SHAPES.get(known[0], _HOSTS)
    closest = sorted(shapes, key=lambda shape: abs(math.log2(math.prod(_ints(shape)) / count)))
    return ", ".join(f"{known[0]}:{shape}" for shape in closest[:3])


_SQUARE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_HOSTS = ("1x1x1", "1x1x2", "1x1x4", "1x1x8", "1x2x8", "1x4x8", "1x8x8", "1x16x8", "1x32x8")
_SHAPES = {"v4": _CUBE, "v5p": _CUBE, "v5e": _SQUARE, "v6e": _SQUARE}


def cpu_devices(count: int) -> tuple[Any, ...]:
    """That many virtual devices of this machine's processor.

    Raises ValueError where JAX has begun already, with fewer.
    """
    _reserve(count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"topology cpu:{count}: this process has begun with {len(devices)} CPU devices"
        )
    return tuple(devices[:count])


def _tpu_devices(name: str, chip: Chip, shape: str, slices: int) -> tuple[Any, ...]:
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    with _environment(_QUIET):
        try:
            described = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{chip.name}:{shape}", **options
            )
        except Exception as error:  # whatever libtpu raises
            if "lockfile" in str(error):
                raise ValueError(
                    f"topology {name}: another process holds libtpu, and "
                    "ALLOW_MULTIPLE_LIBTPU_LOAD forbids a second; set it to 1, or wait"
                ) from error
            missing = ("libtpu", "tpu support not installed")
            if isinstance(error, ImportError) or any(m in str(error).lower() for m in missing):
                raise MissingCompiler(
                    f"topology {name}: the TPU compiler is not installed; pip install "
                    "'vljax[plan-tpu]'"
                ) from error
            raise ValueError(
                f"topology {name}: TPU {chip.name} does not come in {shape}, but in "
                f"{near(name)} ({str(error).splitlines()[0]})"
            ) from error
    return tuple(described.devices)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets what is unset; left in place, since libtpu reads it later too."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
    yield


def torus_dimensions(devices: np.ndarray) -> list[tuple[int, int]]:
    """Which dimensions of the torus so many devices span: (dimension, how many positions)."""
    coordinates = np.array([d.coords for d in devices])
    spans = [(i, len(set(column))) for i, column in enumerate(coordinates.T)]
    return [(i, n) for i, n in spans if n > 1]


def _ints(shape: str) -> Sequence[int]:
    return [int(n) for n in shape.split("x")]
