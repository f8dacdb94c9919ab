"""Folders of weights: a tree of arrays (Orbax) beside a manifest that says what they are.

::

    DIR/manifest.json   what made them, size, template, hash of names, shapes, digests of arrays
    DIR/params/         nested dict of arrays
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = dict[str, Any]
SLICED = 32 * 2**20  # bytes beyond which stacked arrays are written and read a slice at a time
ALIGN = 64  # bytes

logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells of every step it takes


class WeightsError(ValueError):
    """Weights that are missing, damaged or do not fit; the sentence names both sides."""


def flatten(tree: Any) -> dict[str, Any]:
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


def digest(value: np.ndarray, begun: Any = None) -> Any:
    """SHA-256 of an array's bytes in C order; goes on with one that was ``begun``."""
    made = hashlib.sha256() if begun is None else begun
    made.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return made


def save(folder: str | Path, params: Tree, manifest: dict[str, Any], dtype: Any = None) -> None:
    """Writes weights and manifest to ``folder``, over what it holds; ``dtype`` casts arrays.

    Of several processes one may do so; the others need not know.
    """
    params = jax.tree.map(np.asarray, params)
    if dtype is not None:
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    _save_arrays(Path(folder).absolute(), params)
    digests = {name: digest(x).hexdigest()[:32] for name, x in flatten(params).items()}
    write_manifest(Path(folder), params, manifest, digests)


def _save_arrays(folder: Path, params: Tree) -> None:
    import orbax.checkpoint as ocp

    # Without its manifest the folder is none of weights, should this be cut short.
    (folder / "manifest.json").unlink(missing_ok=True)
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    with ocp.StandardCheckpointer(multiprocessing_options=alone) as saver:
        saver.save(folder / "params", params, force=True)
    # Orbax writes down where the folder lay, which means nothing once it is moved or shipped.
    (folder / "params" / "commit_success.txt").write_text("Checkpoint commit was successful.\n")


def write_manifest(
    folder: Path, params: Tree, manifest: Mapping[str, Any], digests: Mapping[str, str]
) -> None:
    """``params`` may be abstract: their names and shapes are noted."""
    facts = {"parameters": len(flatten(params)), "shapes": shapes_hash(params), "digests": digests}
    write_whole(folder / "manifest.json", json.dumps({**manifest, **facts}, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file all or nothing, whenever the process may be killed."""
    # A name of its own, as other hosts may be writing the same file; hidden, as a kill leaves it.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
        _save_arrays(self.folder, unflatten(frame))
        self._transaction: Any = None
        self._held = 0
        self._array: tuple[str, Any] = "", None  # the one that is being written
        self._digests: dict[str, Any] = {}

    def write(self, name: str, value: np.ndarray, index: int | None = None) -> None:
        """A whole array, or slice ``index`` of it; those of one array follow in their order."""
        self._begin()
        if self._array[0] != name:
            self._array = name, self._create(name, index is not None)
        array = self._array[1]
        (array if index is None else array[index]).write(value).result()
        self._digests[name] = digest(value, self._digests.get(name))
        self._held += value.nbytes
        if self._held >= self.HELD:
            self._commit()

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Writes the manifest, which makes the folder one that can be loaded."""
        self._commit()
        digests = {name: made.hexdigest()[:32] for name, made in self._digests.items()}
        write_manifest(self.folder, unflatten(dict(self.arrays)), manifest, digests)

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


def manifest_hash(folder: str | Path) -> str:
    """Tells weights apart without reading them. Raises WeightsError as ``read_manifest`` does."""
    return hashlib.sha256(json.dumps(read_manifest(folder)).encode()).hexdigest()[:16]


def load(
    folder: str | Path, dtype: Any = np.float32, under: tuple[str, ...] = ()
) -> tuple[Tree, dict[str, Any]]:
    """The nested dict of arrays on the host and the manifest.

    Args:
      dtype: what arrays are cast to as they are read; None keeps each as it is.
      under: slash prefixes of the arrays to read; all, if there are none.
    """
    arrays, manifest = stored(folder)
    wanted = {n: x for n, x in arrays.items() if not under or is_under(n, under)}
    return unflatten({name: x.read(dtype) for name, x in wanted.items()}), manifest


def stored(folder: str | Path) -> tuple[dict[str, "Stored"], dict[str, Any]]:
    """Slash name -> an array of ``folder``, none of them read yet; and the manifest."""
    import orbax.checkpoint as ocp

    manifest = read_manifest(folder)
    path = Path(folder).absolute() / "params"
    with _readable(path):
        found = flatten(ocp.PyTreeCheckpointer().metadata(path).item_metadata.tree)
        if shapes_hash(unflatten(found)) != manifest["shapes"]:
            raise WeightsError(f"{path}: its arrays are not those of manifest.json; copy both anew")
    digests = manifest.get("digests", {})
    arrays = {
        name: Stored(path, name, tuple(x.shape), np.dtype(x.dtype), digests.get(name))
        for name, x in found.items()
    }
    return arrays, manifest


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except (ValueError, FileNotFoundError, KeyError) as error:
        raise WeightsError(f"{path}: can't be read as weights ({error}); copy it anew") from error


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array on the disk. ``noted``: its digest, where the manifest tells it."""

    params: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    noted: str | None = None
    source: Any = None  # what it is read from, if not from its own file

    def read(self, dtype: Any = None, box: Sequence[slice] | None = None) -> np.ndarray:
        """The part of it in ``box``, a chunk at a time where its chunks are slices.

        Its memory begins where JAX wants it, so that on the CPU it is used as it is and not copied.
        Raises WeightsError.
        """
        box = tuple(slice(0, n) for n in self.shape) if box is None else tuple(box)
        shape = tuple(part.stop - part.start for part in box)
        with _readable(self.params):
            array = self._open()
            out = _aligned(shape, self.dtype if dtype is None else np.dtype(dtype))
            if _is_sliced(array) and out.nbytes > SLICED:
                for i in range(len(out)):
                    out[i] = np.asarray(array[(box[0].start + i, *box[1:])])
            else:
                out[...] = np.asarray(array[box])
        return out

    def digest(self) -> str:
        """As the manifest has it, or as the bytes are."""
        if self.noted is not None:
            return self.noted
        with _readable(self.params):
            array, begun = self._open(), hashlib.sha256()
            whole = not (self.shape and _is_sliced(array))
            for part in (array,) if whole else (array[i] for i in range(self.shape[0])):
                begun = digest(part.read().result(), begun)
        return begun.hexdigest()[:32]

    def slices(self) -> Iterator["Stored"]:
        """One for each index of the leading axis; of an array in one chunk all is read once."""
        with _readable(self.params):
            array = self._open()
            source = array if _is_sliced(array) else np.asarray(array)
        for i in range(self.shape[0]):
            yield dataclasses.replace(self, shape=self.shape[1:], noted=None, source=source[i])

    def put(self, where: jax.sharding.Sharding, dtype: Any = None) -> jax.Array:
        """Onto devices; of what other processes hold nothing is read.

        A slice of the leading axis at a time where its chunks are slices and it is large, so that
        the host has room for one slice, if it is not itself where the array lives.
        """
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        large = math.prod(self.shape) * dtype.itemsize > SLICED
        with _readable(self.params):
            sliced = large and _is_sliced(self._open())
        if not sliced or where.shard_shape(self.shape)[0] < self.shape[0]:
            return self._put(where, dtype)
        whole = jax.jit(functools.partial(jnp.zeros, self.shape, dtype), out_shardings=where)()
        filled = jax.jit(_filled, donate_argnums=0, out_shardings=where)
        for i in range(self.shape[0]):
            whole = jax.block_until_ready(filled(whole, self._put(where, dtype, i), i))
        return whole

    def _put(
        self, where: jax.sharding.Sharding, dtype: np.dtype, index: int | None = None
    ) -> jax.Array:
        """All of it, or the slice [1, ...] at ``index``, which lies as the array does."""
        begin, length = (0, self.shape[0] if self.shape else 0) if index is None else (index, 1)
        shape = (length, *self.shape[1:]) if self.shape else ()
        indices = where.addressable_devices_indices_map(shape).values()
        bounds = [
            [part.indices(n)[:2] for part in dimension]
            for n, dimension in zip(shape, zip(*indices, strict=True), strict=True)
        ]
        first = [min(begin for begin, _ in one) for one in bounds]
        last = [max(end for _, end in one) for one in bounds]
        box = [slice(a, b) for a, b in zip(first, last, strict=True)]
        if box:
            box[0] = slice(box[0].start + begin, box[0].stop + begin)
        values = self.read(dtype, box)

        def held(index: Any) -> np.ndarray:
            ends = [p.indices(n) for p, n in zip(index, shape, strict=True)]
            return values[
                tuple(slice(a - o, b - o) for (a, b, _), o in zip(ends, first, strict=True))
            ]

        # Waited for, so that no more than one array is on its way.
        return jax.block_until_ready(jax.make_array_from_callback(shape, where, held))

    def _open(self) -> Any:
        import tensorstore as ts

        if self.source is not None:
            return self.source
        return ts.open(array_spec(self.params, self.name), open=True, read=True).result()


def _filled(whole: jax.Array, part: jax.Array, at: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, at, 0)


def _is_sliced(array: Any) -> bool:
    """Whether each index of the leading axis is a chunk of its own."""
    return (
        not isinstance(array, np.ndarray) and (array.chunk_layout.read_chunk.shape or (0,))[0] == 1
    )


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    room = np.empty(math.prod(shape) * dtype.itemsize + ALIGN, np.uint8)
    begin = -room.ctypes.data % ALIGN
    return room[begin : len(room) - ALIGN + begin].view(dtype).reshape(shape)


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
