"""Folders of weights: a tree of arrays (Orbax) beside a manifest that says what they are.

::

    DIR/manifest.json   what made them, size, template, hash of names, shapes
    DIR/params/         nested dict of arrays
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

Tree = dict[str, Any]
SLICED = 32 * 2**20  # bytes beyond which stacked arrays are written and read a slice at a time
ALIGN = 64  # bytes

logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells of every step it takes


class WeightsError(ValueError):
    """Weights that are missing, damaged or do not fit; the sentence names both sides."""


def flatten(tree: Tree) -> dict[str, Any]:
    """Nested dicts -> {"a/b/c": leaf}."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in pairs}


def unflatten(flat: dict[str, Any]) -> Tree:
    """The inverse of ``flatten``."""
    tree: Tree = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def shapes_hash(tree: Tree) -> str:
    """A hash of names and shapes, so that a different tree is told apart before it is used."""
    shapes = {name: list(x.shape) for name, x in flatten(tree).items()}
    return hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest()[:16]


def content_hash(tree: Tree) -> str:
    """A hash of every byte, names included."""
    digest = hashlib.sha256()
    for name, x in sorted(flatten(tree).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(jax.device_get(x)).view(np.uint8).data)
    return digest.hexdigest()[:16]


def save(folder: str | Path, params: Tree, manifest: dict[str, Any], dtype: Any = None) -> None:
    """Writes weights and manifest to ``folder``, over what it holds; ``dtype`` casts arrays."""
    import orbax.checkpoint as ocp

    folder = Path(folder).absolute()
    if dtype is not None:
        params = jax.tree.map(lambda x: np.asarray(x).astype(dtype), params)
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder / "params", params, force=True)
    # Orbax writes down where the folder lay, which means nothing once it is moved or shipped.
    (folder / "params" / "commit_success.txt").write_text("Checkpoint commit was successful.\n")
    write_manifest(folder, params, manifest)


def write_manifest(folder: Path, params: Tree, manifest: Mapping[str, Any]) -> None:
    """``params`` may be abstract: their names and shapes are noted."""
    facts = {"parameters": len(flatten(params)), "shapes": shapes_hash(params)}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **facts}, indent=1) + "\n")


class Writer:
    """Fills ``folder`` a slice of an array at a time, for trees that do not fit into memory.

    Orbax lays the checkpoint out with a scalar in each array's place; the arrays are then written
    into its store, one chunk for each index of the leading axis of those written in slices.
    """

    HELD = 128 * 2**20  # bytes that are gathered before they go to the disk

    def __init__(self, folder: str | Path, arrays: Mapping[str, jax.ShapeDtypeStruct]):
        """``arrays``: slash name -> shape and dtype of all that will be written."""
        self.folder, self.arrays = Path(folder).absolute(), dict(arrays)
        frame = {name: np.zeros((), x.dtype) for name, x in arrays.items()}
        save(self.folder, unflatten(frame), {})
        (self.folder / "manifest.json").unlink()
        self._transaction: Any = None
        self._held = 0
        self._array: tuple[str, Any] = "", None  # the one that is being written

    def write(self, name: str, value: np.ndarray, index: int | None = None) -> None:
        """A whole array, or slice ``index`` of it; the slices of one array follow each other."""
        self._begin()
        if self._array[0] != name:
            self._array = name, self._create(name, index is not None)
        array = self._array[1]
        (array if index is None else array[index]).write(value).result()
        self._held += value.nbytes
        if self._held >= self.HELD:
            self._commit()

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Writes the manifest, which makes the folder one that can be loaded."""
        self._commit()
        write_manifest(self.folder, unflatten(dict(self.arrays)), manifest)

    def _commit(self) -> None:
        if self._transaction is not None:
            self._transaction.commit_async().result()
        self._transaction, self._held = None, 0

    def _begin(self) -> None:
        """A new transaction, if none is open, for the array in hand, too."""
        import tensorstore as ts

        if self._transaction is None:
            self._transaction = ts.Transaction()
            name, array = self._array
            self._array = name, None if array is None else array.with_transaction(self._transaction)

    def _create(self, name: str, sliced: bool) -> Any:
        import tensorstore as ts

        x = self.arrays[name]
        chunks = [1, *x.shape[1:]] if sliced else x.shape
        metadata = {
            "zarr_format": 2,
            "shape": list(x.shape),
            "chunks": [max(n, 1) for n in chunks],
            "dtype": "bfloat16" if x.dtype == "bfloat16" else np.dtype(x.dtype).str,
            "compressor": None,  # weights hardly shrink, and reading them should be fast
            "fill_value": None,
            "order": "C",
            "filters": None,
        }
        spec = array_spec(self.folder / "params", name) | {"metadata": metadata}
        opened = ts.open(spec, create=True, delete_existing=True, transaction=self._transaction)
        return opened.result()


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Raises WeightsError when ``folder`` does not hold weights."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise WeightsError(
            f"{folder}: got no manifest.json, expected a folder of weights that vljax wrote"
        )
    return read_json(path)


def load(
    folder: str | Path, dtype: Any = np.float32, under: tuple[str, ...] = ()
) -> tuple[Tree, dict[str, Any]]:
    """The nested dict of arrays on the host and the manifest.

    Args:
      dtype: what arrays are cast to as they are read; None keeps each as it is.
      under: slash prefixes of the arrays to read; all, if there are none.
    """
    import orbax.checkpoint as ocp

    manifest = read_manifest(folder)
    reader = ocp.PyTreeCheckpointer()
    path = Path(folder).absolute() / "params"
    try:
        structure = flatten(reader.metadata(path).item_metadata.tree)
        if shapes_hash(unflatten(structure)) != manifest["shapes"]:
            raise WeightsError(f"{path}: its arrays are not those of manifest.json; copy both anew")
        wanted = {n: x for n, x in structure.items() if not under or is_under(n, under)}
        return unflatten({name: _read(path, name, dtype) for name in wanted}), manifest
    except WeightsError:
        raise
    except (ValueError, FileNotFoundError, KeyError) as error:
        raise WeightsError(f"{path}: can't be read as weights ({error}); copy it anew") from error


def _read(params: Path, name: str, dtype: Any) -> np.ndarray:
    """One array, a chunk at a time where its chunks are slices.

    Its memory begins where JAX wants it, so that on the CPU it is used as it is and not copied.
    """
    import tensorstore as ts

    array = ts.open(array_spec(params, name), open=True, read=True).result()
    dtype = np.dtype(array.dtype.numpy_dtype if dtype is None else dtype)
    room = np.empty(math.prod(array.shape) * dtype.itemsize + ALIGN, np.uint8)
    begin = -room.ctypes.data % ALIGN
    out = room[begin : len(room) - ALIGN + begin].view(dtype).reshape(array.shape)
    chunk = array.chunk_layout.read_chunk.shape or (0,)
    if chunk[0] == 1 and out.nbytes > SLICED:
        for i in range(len(out)):
            out[i] = array[i].read().result()
    else:
        out[...] = array.read().result()
    return out


def array_spec(params: Path, name: str, driver: str = "zarr") -> dict[str, Any]:
    """Where Orbax keeps an array, for tensorstore."""
    where = {"base": params.absolute().as_uri() + "/", "path": name.replace("/", ".") + "/"}
    return {"driver": driver, "kvstore": {"driver": "ocdbt", **where}}


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises WeightsError."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{path}: can't be read as JSON ({error}); copy it anew") from error
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise WeightsError(f"{path}: got a JSON {kind}, expected an object; copy it anew")
    return value


def require_new(path: Path) -> None:
    """Raises WeightsError where something is already."""
    if path.exists():
        raise WeightsError(f"{path}: is there already; give another name, or delete it")


def is_under(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a slash name is one of ``prefixes`` or below one."""
    return any(name == p or name.startswith(p.rstrip("/") + "/") for p in prefixes)


def merge(*trees: Tree) -> Tree:
    """One tree of all; a later one's arrays take the place of an earlier one's."""
    flat: dict[str, Any] = {}
    for tree in trees:
        flat |= flatten(tree)
    return unflatten(flat)


def pick(params: Tree, wanted: Tree, source: str) -> Tree:
    """The arrays of ``params`` that ``wanted`` (abstract) names.

    Raises WeightsError naming what is missing or has another shape.
    """
    have, want = flatten(params), flatten(wanted)
    missing = sorted(set(want) - set(have))
    if missing:
        raise WeightsError(
            f"{source}: lacks {len(missing)} of {len(want)} arrays, {missing[0]} among them; "
            "name a folder that holds them"
        )
    for name, leaf in want.items():
        if have[name].shape != leaf.shape:
            raise WeightsError(
                f"{source}: {name} has shape {have[name].shape}, expected {leaf.shape}; "
                "these weights belong to a model of another size"
            )
    return unflatten({name: have[name] for name in want})
