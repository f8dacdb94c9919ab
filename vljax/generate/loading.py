"""What answering holds of a folder's weights, and reading that straight to where it lives."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from vljax.models import precision
from vljax.models.precision import Formats
from vljax.models.sizes import VideoLlamaSize
from vljax.models.video_llama import abstract_parameters
from vljax.nn.layers import JOINED
from vljax.sharding.placement import Placement
from vljax.store import Stored, flatten, unflatten

LAYERS = "llama/layers/"


def held(
    size: VideoLlamaSize,
    dtype: Any,
    formats: Formats,
    placement: Placement | None,
    has: Callable[[str], bool],
) -> dict[str, jax.ShapeDtypeStruct]:
    """Slash names to abstract arrays, the language model's layers apart, where they will lie.

    ``placement``: None is the first device. ``has``: which names there are.
    """
    boxed = abstract_parameters(size)
    boxed = precision.held(boxed, formats, dict.fromkeys(flatten(nn.unbox(boxed)), dtype))
    where: Mapping[str, Any] = flatten(placement.parameters(boxed)) if placement else {}
    first = SingleDeviceSharding(jax.devices()[0]) if placement is None else None
    found: dict[str, jax.ShapeDtypeStruct] = {}
    for name, x in flatten(nn.unbox(boxed)).items():
        if has(name):
            shape = x.shape
            if _is_turned(name, placement):
                name, shape = _turned(name), (*shape[:-2], *shape[:-3:-1])
            one = jax.ShapeDtypeStruct(shape, x.dtype, sharding=where.get(name, first))
            found |= _layers_apart(name, one)
    return found


def compute_dtype(dtype: Any) -> Any:
    """What activations are in, where weights are in ``dtype``.

    XLA:CPU does everything but products of two matrices in float32, and rounds in between.
    """
    return jnp.dtype("float32") if jax.default_backend() == "cpu" else jnp.dtype(dtype)


def _is_turned(name: str, placement: Placement | None) -> bool:
    """Whether a kernel is held as its columns, see ``nn.layers.by_columns``."""
    alone = placement is None and jax.default_backend() == "cpu"
    return alone and name.startswith("llama/") and name.endswith("/kernel")


def _turned(name: str) -> str:
    return name.removesuffix("kernel") + "turned"


def _layers_apart(name: str, x: jax.ShapeDtypeStruct) -> dict[str, jax.ShapeDtypeStruct]:
    if not name.startswith(LAYERS):
        return {name: x}
    where = x.sharding
    if isinstance(where, NamedSharding):  # layers are never split
        where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
    layer = jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=where)
    return {_of_layer(name, i): layer for i in range(x.shape[0])}


def _of_layer(name: str, layer: int) -> str:
    return f"{LAYERS}{layer}/{name.removeprefix(LAYERS)}"


def told(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    """One line: what that takes on this process's devices, and whether it fits."""
    where = next(iter(wanted.values())).sharding
    assert where is not None
    devices = where.addressable_devices
    sharers = len(devices) if next(iter(devices)).platform == "cpu" else 1
    sizes = precision.weights_bytes(unflatten(dict(wanted)))
    return precision.told(sizes, precision.free_bytes(), sharers)


def read(
    arrays: Mapping[str, Stored],
    size: VideoLlamaSize,
    formats: Formats,
    wanted: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
    """Reads ``arrays``, each as ``wanted`` (see ``held``) has it; a layer, or an array, at a time.

    No more than that is on the host at once, beside what lives there.
    """
    importances = precision.importances(arrays, size, formats)
    found: dict[str, jax.Array] = {}
    for stacked, array in arrays.items():
        for name, one, importance in _pieces(stacked, array, importances.get(stacked)):
            if _turned(name) in wanted:
                columns = np.ascontiguousarray(one.read(wanted[_turned(name)].dtype).T)
                found[_turned(name)] = jax.device_put(columns, wanted[_turned(name)].sharding)
            elif precision.form_of(name, formats) is None:
                where = wanted[name].sharding
                assert where is not None
                found[name] = one.put(where, wanted[name].dtype)
            else:
                for part, x in precision.read(name, one, formats, None, importance).items():
                    found[part] = jax.block_until_ready(jax.device_put(x, wanted[part].sharding))
    return joined(found)


def joined(found: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """``found``, in which columns that meet the same input are one array, see ``nn.layers.JOINED``.

    It is changed in place, so that only one layer's are held twice.
    """
    for whole, parts in JOINED.items():
        first = f"/{_turned(parts[0] + '/kernel')}"
        for name in [n for n in found if n.startswith(LAYERS) and n.endswith(first)]:
            stem = name.removesuffix(first)
            columns = [found.pop(f"{stem}/{_turned(part + '/kernel')}") for part in parts]
            found[f"{stem}/{_turned(whole + '/kernel')}"] = jnp.concatenate(columns)
    return found


def _pieces(
    name: str, array: Stored, importance: np.ndarray | None
) -> Iterator[tuple[str, Stored, np.ndarray | None]]:
    if not name.startswith(LAYERS):
        yield name, array, importance
        return
    for i, layer in enumerate(array.slices()):
        yield _of_layer(name, i), layer, None if importance is None else importance[i]
