"""What accelerators can do at best, by their makers' figures. Nothing here is measured."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    ``kinds``: how its ``device_kind`` begins. ``flops``: a second, of dense bfloat16 products as
    they are computed, ``computes``. ``memory``: bytes a program may use, as the compiler states it
    on TPUs, as CUDA does on small cards. ``link``: bytes/s, one way, of an ICI link (TPU), or of
    all of a card's NVLink together, or of its PCIe. ``wraps``: the length at which a torus
    dimension closes, to be a line below it. ``network``: bytes/s a device between slices or hosts,
    an assumption about the data centre. ``cores``: as how many devices the compiler is told of one.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm: float
    memory: float
    link: float
    network: float
    wraps: int = 0
    cores: int = 1
    computes: str = "bfloat16"

    @property
    def core(self) -> "Chip":
        """A device as the compiler counts them: all but the links in equal parts."""
        parts = {n: getattr(self, n) / self.cores for n in ("flops", "hbm", "memory", "network")}
        return dataclasses.replace(self, **parts, cores=1)

    @property
    def is_tpu(self) -> bool:
        return self.kinds[0].startswith("TPU")


_GIB = 2**30
_TURING = "float32, in which it computes bfloat16"  # its tensor cores know float16 alone
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 2.75e14, 1.2e12, 30.5 * _GIB, 4.5e10, 6.2e9, 4, cores=2),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 1.97e14, 8.1e11, 15.75 * _GIB, 4.5e10, 3.1e9, 16),
        Chip("v5p", ("TPU v5", "TPU v5p"), 4.59e14, 2.8e12, 95.73 * _GIB, 9e10, 6.2e9, 4),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 9.2e14, 1.6e12, 31.24 * _GIB, 9e10, 1.25e10, 16),
        Chip("a100", ("NVIDIA A100",), 3.12e14, 2.0e12, 80e9, 3e11, 2.5e10),
        Chip(
            "a100_40g",
            ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
            3.12e14,
            1.555e12,
            39.4 * _GIB,
            3e11,
            2.5e10,
        ),
        Chip("h100", ("NVIDIA H100",), 9.89e14, 3.35e12, 80e9, 4.5e11, 5e10),
        Chip("h100_pcie", ("NVIDIA H100 PCIe",), 7.56e14, 2.0e12, 80e9, 6.4e10, 5e10),
        Chip("h200", ("NVIDIA H200",), 9.89e14, 4.8e12, 141e9, 4.5e11, 5e10),
        Chip("t4", ("Tesla T4",), 8.1e12, 3.2e11, 14.56 * _GIB, 1.6e10, 3.1e9, computes=_TURING),
        Chip("l4", ("NVIDIA L4",), 1.21e14, 3e11, 22.03 * _GIB, 3.2e10, 3.1e9),
        Chip("a10g", ("NVIDIA A10G",), 7e13, 6e11, 22.06 * _GIB, 3.2e10, 3.1e9),
        Chip("rtx3090", ("NVIDIA GeForce RTX 3090",), 7.1e13, 9.36e11, 23.6 * _GIB, 3.2e10, 1.2e9),
        Chip(
            "rtx4090", ("NVIDIA GeForce RTX 4090",), 1.65e14, 1.008e12, 23.5 * _GIB, 3.2e10, 1.2e9
        ),
    )
}


# What makes a card another one than its name begins with.
_ANOTHER = r"(?![0-9A-Za-z]| (?:D|Laptop|SUPER|Ti)\b)"


def chip_of(kind: str) -> Chip | None:
    """The chip of a ``device_kind``, by the longest name it begins with; None if none does."""
    known = [
        (len(k), c.name)
        for c in CHIPS.values()
        for k in c.kinds
        if re.match(re.escape(k) + _ANOTHER, kind)
    ]
    return CHIPS[max(known)[1]] if known else None
