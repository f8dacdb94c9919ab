"""NVIDIA cards described to XLA's CUDA compiler, none of which need be here."""

from typing import Any

import jax

from vljax.bench.topology import MissingCompiler
from vljax.sharding.chips import Chip

# What a card is to the compiler; facts of the makers' data sheets and of ``deviceQuery``.
_TURING = {
    "core_count": 40,
    "shared_memory_per_core": 65536,
    "optin": 65536,
    "l2": 4194304,
    "threads": 1024,
    "fpus": 64,
}
_AMPERE = {
    "core_count": 108,
    "shared_memory_per_core": 167936,
    "optin": 166912,
    "l2": 41943040,
    "threads": 2048,
    "fpus": 128,
}
_HOPPER = _AMPERE | {
    "core_count": 132,
    "shared_memory_per_core": 233472,
    "optin": 232448,
    "l2": 52428800,
}
_SMALL = _AMPERE | {"shared_memory_per_core": 102400, "optin": 101376, "threads": 1536}
_GA102 = _SMALL | {"l2": 6291456}
_CARDS: dict[str, tuple[str, dict[str, int], float, tuple[int, int]]] = {
    "a100": ("NVIDIA A100-SXM4-80GB", _AMPERE, 1.41, (8, 0)),
    "a100_40g": ("NVIDIA A100-SXM4-40GB", _AMPERE, 1.41, (8, 0)),
    "h100": ("NVIDIA H100 80GB HBM3", _HOPPER, 1.98, (9, 0)),
    "h100_pcie": ("NVIDIA H100 PCIe", _HOPPER | {"core_count": 114}, 1.755, (9, 0)),
    "h200": ("NVIDIA H200", _HOPPER, 1.98, (9, 0)),
    "t4": ("Tesla T4", _TURING, 1.59, (7, 5)),
    "l4": ("NVIDIA L4", _SMALL | {"core_count": 58, "l2": 50331648}, 2.04, (8, 9)),
    "a10g": ("NVIDIA A10G", _GA102 | {"core_count": 80}, 1.71, (8, 6)),
    "rtx3090": ("NVIDIA GeForce RTX 3090", _GA102 | {"core_count": 82}, 1.695, (8, 6)),
    "rtx4090": (
        "NVIDIA GeForce RTX 4090",
        _SMALL | {"core_count": 128, "l2": 75497472},
        2.52,
        (8, 9),
    ),
}
_TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory_per_core}
  threads_per_core_limit: {threads}
  core_count: {core_count}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""


def target_config(chip: Chip) -> str:
    """XLA's text proto of a card. Raises ValueError for one that is not described here."""
    if chip.name not in _CARDS:
        raise ValueError(f"card: got {chip.name}, expected one of {', '.join(_CARDS)}")
    name, cores, clock, (major, minor) = _CARDS[chip.name]
    facts = {"bandwidth": int(chip.hbm), "memory": int(chip.memory), "major": major, "minor": minor}
    return _TARGET.format(name=name, clock=clock, **facts, **cores)


def cuda_devices(chip: Chip, shape: str) -> tuple[Any, ...]:
    """The devices of slices x hosts x cards. Raises ValueError without the CUDA compiler."""
    from jax.experimental import topologies

    jax.devices()  # finds the plug-ins
    try:
        described = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(chip), topology=shape
        )
    except NotImplementedError as error:
        raise MissingCompiler(
            f"topology {chip.name}:{shape}: the CUDA compiler is not installed; pip install "
            "'vljax[plan-gpu]'"
        ) from error
    except Exception as error:  # whatever the plug-in raises
        raise ValueError(
            f"topology {chip.name}:{shape}: {str(error).splitlines()[0]}; expected "
            "SLICESxHOSTSxCARDS such as 1x1x8"
        ) from error
    return tuple(described.devices)
