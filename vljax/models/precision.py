"""Which frozen kernels are held in 8 or 4 bits, what weights take, and reading them so."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vljax.models import calibrate
from vljax.models.sizes import VideoLlamaSize
from vljax.nn import quant
from vljax.nn.quant import FORMATS, Format
from vljax.store import Stored, Tree, flatten, unflatten

Formats = tuple[tuple[str, Format], ...]  # regexes of kernels' slash names; the first that matches

LLM = r"llama/layers/.*/kernel"
HEAD = r"llama/head/kernel"  # never in less than eight bits
VIT = r"frame_encoder/vit/layers/.*/kernel"


def formats(quantise: str = "", quantise_vit: str = "") -> Formats:
    """How the LLM's kernels are held, "int8", "int4" or "" as they are; and the ViT's, no "int4".

    Raises ValueError for another name.
    """
    chosen: Formats = ()
    if _known("quantise", quantise, ("int8", "int4")):
        chosen += (HEAD, FORMATS["int8"]), (LLM, FORMATS[quantise])
    if _known("quantise_vit", quantise_vit, ("int8",)):
        chosen += ((VIT, FORMATS[quantise_vit]),)
    return chosen


def _known(field: str, name: str, names: tuple[str, ...]) -> bool:
    if name and name not in names:
        raise ValueError(f"{field}: got {name!r}, expected {' or '.join(names)}, or nothing")
    return bool(name)


def form_of(name: str, formats: Formats) -> Format | None:
    """What an array's slash name asks for."""
    return next((form for regex, form in formats if re.fullmatch(regex, name)), None)


def require_frozen(formats: Formats, frozen: Iterable[str], trainable: Iterable[str]) -> None:
    """Raises ValueError where a format is for what is trained, or for nothing there is."""
    for name in trainable:
        if form := form_of(name, formats):
            raise ValueError(
                f"quantise: {name} is trained, but only what is frozen can be {form.name}"
            )
    for regex, form in formats:
        if regex != HEAD and not any(re.fullmatch(regex, name) for name in frozen):
            raise ValueError(
                f"quantise: {form.name} is asked for {regex}, of which nothing is used"
            )


def held(tree: Tree, formats: Formats, dtypes: Mapping[str, Any]) -> Tree:
    """An abstract tree as it will be held: kernels with a format quantised, others in ``dtypes``.

    ``dtypes``: by slash name; what is not there stays as it is. Leaves may be boxed with their
    logical axes; a scale then has its kernel's.
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for part, x in _parts(name, nn.unbox(leaf), formats, dtypes.get(name)).items():
            found[part] = leaf.replace_boxed(x) if _is_box(leaf) else x
    return unflatten(found)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def _parts(name: str, x: Any, formats: Formats, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    form = form_of(name, formats)
    if form is None:
        return {name: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)}
    return {f"{name}/{part}": y for part, y in quant.shapes(x.shape, form).items()}


def importances(
    arrays: Mapping[str, Stored], size: VideoLlamaSize, formats: Formats
) -> dict[str, np.ndarray]:
    """What ``read`` needs to know of kernels that are held in groups; nothing where none is."""
    forms = [form_of(name, formats) for name in arrays]
    if not any(form and form.group for form in forms):
        return {}
    return calibrate.importances(arrays, size.llama)


def read(
    name: str, array: Stored, formats: Formats, dtype: Any, importance: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """An array in ``dtype`` or, if it has a format, quantised a layer at a time: by slash name."""
    form = form_of(name, formats)
    if form is None:
        return {name: array.read(dtype)}
    made = {part: np.empty(x.shape, x.dtype) for part, x in quant.shapes(array.shape, form).items()}
    for index in np.ndindex(array.shape[:-2]):
        box = [slice(i, i + 1) for i in index] + [slice(0, n) for n in array.shape[-2:]]
        weight = None if importance is None else importance[index]
        kernel = array.read(None, box).reshape(array.shape[-2:])
        for part, x in quant.quantise(kernel, form, weight).items():
            made[part][index] = np.asarray(x)
    return {f"{name}/{part}": x for part, x in made.items()}


def weights_bytes(tree: Tree) -> dict[str, int]:
    """What each part of a tree takes: of arrays or abstract ones, on one device if they are placed.

    A part is a top-level name.
    """
    sizes: dict[str, int] = {}
    for name, x in flatten(tree).items():
        part = name.partition("/")[0]
        sizes[part] = sizes.get(part, 0) + array_bytes(x)
    return sizes


def array_bytes(x: Any) -> int:
    """What an array or an abstract one takes on one device."""
    where = getattr(x, "sharding", None)
    shape = x.shape if where is None else where.shard_shape(x.shape)
    return -(-math.prod(shape) * jax.dtypes.itemsize_bits(x.dtype) // 8)


def free_bytes() -> int | None:
    """What is free on this process's first device, or of the host's memory; None if none tells."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        known = {"bytes_limit", "bytes_in_use"} <= set(stats)
        return stats["bytes_limit"] - stats["bytes_in_use"] if known else None
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as lines:
            facts = dict(line.split(":") for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def told(sizes: Mapping[str, int], free: int | None, sharers: int = 1) -> str:
    """One line: what the parts take together, and whether that fits.

    ``sharers``: devices that share the memory, each with as much.
    """
    whole = sum(sizes.values()) * sharers
    large = {part: n for part, n in sizes.items() if n >= max(sizes.values()) / 100}
    parts = ", ".join(f"{part} {_size(n * sharers)}" for part, n in large.items())
    line = f"weights: {_size(whole)} ({parts})"
    if free is None:
        return line
    if whole <= free:
        return f"{line} of {_size(free)} that are free"
    return f"{line}, but only {_size(free)} are free: quantise to int8 or int4, or shard them"


def _size(n: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n < 1000 or unit == "GiB":
            break
        n /= 1024
    return f"{n:.1f} {unit}" if unit != "bytes" else f"{n:.0f} bytes"
