"""Folders of weights that vljax wrote, looked at without loading them whole."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vljax.convert.findings import Finding, listed
from vljax.convert.layouts import UNITS
from vljax.convert.readers import TensorInfo
from vljax.convert.towers import expected
from vljax.models.sizes import size_of
from vljax.store import WeightsError, array_spec, flatten, is_under, shapes_hash, unflatten


def is_converted(folder: Path) -> bool:
    """Whether ``folder`` is one that ``vljax.store`` wrote, or what is left of it."""
    return (folder / "params" / "_METADATA").is_file() or (
        (folder / "manifest.json").is_file() and (folder / "params").is_dir()
    )


@dataclasses.dataclass(frozen=True)
class Converted(Mapping[str, Any]):
    """Slash names to arrays, each opened when it is asked for and read where it is sliced."""

    params: Path
    infos: Mapping[str, TensorInfo]
    zarr3: bool

    def __getitem__(self, name: str) -> Any:
        import tensorstore

        spec = array_spec(self.params, name, "zarr3" if self.zarr3 else "zarr")
        stored = tensorstore.open(spec, open=True, read=True).result()
        # A chunk is read and unpacked as one: slices save memory only where a layer is a chunk.
        a_layer_each = (stored.chunk_layout.read_chunk.shape or (0,))[0] == 1
        return stored if a_layer_each else np.asarray(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def info(self, name: str) -> TensorInfo:
        return self.infos[name]


def open_converted(folder: Path) -> Converted:
    """Raises WeightsError when Orbax's own tables can't be read."""
    import orbax.checkpoint as ocp

    params = folder / "params"
    try:
        found = flatten(ocp.PyTreeCheckpointer().metadata(params.absolute()).item_metadata.tree)
        infos = {n: TensorInfo(tuple(m.shape), np.dtype(m.dtype), params) for n, m in found.items()}
        zarr3 = bool(json.loads((params / "_METADATA").read_text()).get("use_zarr3"))
    except Exception as error:  # a damaged folder can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{params}: can't be read as weights ({reason}); copy or convert it anew"
        ) from error
    return Converted(params, infos, zarr3)


def manifest_of(folder: Path) -> dict[str, Any]:
    """What manifest.json says; empty when it is missing or no JSON object, which is told apart."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def of_converted(folder: Path, tensors: Converted | None) -> Iterator[Finding]:
    """The manifest against what lies beside it. ``tensors``: None if they can't be opened."""
    path, manifest = folder / "manifest.json", manifest_of(folder)
    if not path.is_file():
        text = (
            f"{folder}: got params without manifest.json, expected the manifest that says what"
            " they are; copy the whole folder, or convert anew"
        )
        yield Finding(folder, "manifest-missing", text)
        return
    if tensors is None:
        return
    if missing := list(_incomplete(folder, manifest, tensors)):
        yield from missing  # which the hash would only tell less clearly
        return
    infos = tensors.infos.items()
    have = shapes_hash(unflatten({n: jax.ShapeDtypeStruct(i.shape, i.dtype) for n, i in infos}))
    if manifest.get("shapes") != have:
        text = (
            f"{path}: got hash {manifest.get('shapes')} of names and shapes of"
            f" {manifest.get('parameters')} parameters, expected {have} as the {len(tensors)} in"
            " params have; they are of two models: copy both from one place, or convert anew"
        )
        yield Finding(path, "manifest-differs", text)


def _incomplete(folder: Path, manifest: Mapping[str, Any], tensors: Converted) -> Iterator[Finding]:
    """Of the parts that the manifest names, and of units (see layouts) begun, all must be there."""
    try:
        size = size_of(manifest)
    except (ValueError, KeyError):
        return  # no size of ours: the hash of names and shapes must do
    parts = set(manifest.get("parts", ()))
    for prefixes in UNITS.values():
        if any(is_under(name, prefixes) for name in tensors):
            parts.update(prefixes)
    wanted = [name for name in expected(size) if is_under(name, tuple(parts))]
    if missing := [name for name in wanted if name not in tensors]:
        text = (
            f"{folder}: lacks {listed(missing)}, expected all {len(wanted)} parameters of its"
            " parts; copy the whole folder, or convert anew"
        )
        yield Finding(folder, "parameter-missing", text)
