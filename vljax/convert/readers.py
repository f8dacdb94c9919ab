"""Published weights as lazy mappings from names to arrays: torch files, safetensors, folders, GGUF.

Nothing here imports torch and nothing in a file is executed: see ``torch_files``.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vljax.store import WeightsError, read_json

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLES = ("model.safetensors", "pytorch_model.bin")
SAFE_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class TensorInfo(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path


class Entry(NamedTuple):
    info: TensorInfo
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensors(Mapping[str, np.ndarray]):
    """Names to arrays. Each look-up reads its tensor anew, in the dtype it is stored in.

    Attributes:
      files: the files that hold the tensors.
      metadata: what stands beside them; "config" is a language model's config.json.
    """

    entries: Mapping[str, Entry]
    files: tuple[Path, ...]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self.entries

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and file, without reading."""
        return self.entries[name].info

    def renamed(self, prefix: str) -> "Tensors":
        """The same tensors with ``prefix`` before each name."""
        return dataclasses.replace(self, entries={prefix + n: e for n, e in self.entries.items()})


def open_tensors(path: str | Path) -> Tensors:
    """Opens a torch file, a ``.safetensors``, a ``.gguf`` or a Hugging Face folder.

    A ``{"model": {...}}`` wrapper is taken off. Raises WeightsError for what can't be read so.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file; check the path")
    if path.suffix == ".gguf":
        from vljax.convert.gguf import open_gguf

        return open_gguf(path)
    if path.suffix == ".safetensors":
        return Tensors(_open_safetensors(path), (path,))
    from vljax.convert.torch_files import open_torch

    found, metadata = open_torch(path)
    entries = {name: Entry(TensorInfo(t.shape, t.dtype, path), t.read) for name, t in found.items()}
    return Tensors(entries, (path,), metadata)


def joined(tensors: Sequence[Tensors]) -> Tensors:
    """All of them as one; of a name that several hold, the last one's tensor."""
    entries = {name: entry for t in tensors for name, entry in t.entries.items()}
    files = tuple(dict.fromkeys(file for t in tensors for file in t.files))
    return Tensors(entries, files, {k: v for t in tensors for k, v in t.metadata.items()})


def _open_folder(folder: Path) -> Tensors:
    config = folder / "config.json"
    metadata = {"config": read_json(config)} if config.is_file() else {}
    found = [folder / name for name in (*INDEXES, *WHOLES) if (folder / name).is_file()]
    if not found:
        raise WeightsError(
            f"{folder}: got none of {', '.join([*INDEXES, *WHOLES])}; "
            "name a folder that holds a Hugging Face model"
        )
    first = min(found, key=_without_shards)
    if first.name in INDEXES:
        entries, files = _open_shards(folder, first)
        return Tensors(entries, files, metadata)
    opened = open_tensors(first)
    return Tensors(opened.entries, opened.files, metadata)


def _without_shards(file: Path) -> bool:
    """Whether it is the index of a format that was not downloaded, of which other files remain."""
    if file.name not in INDEXES:
        return False
    shards = read_json(file).get("weight_map", {}).values()
    return not any((file.parent / shard).is_file() for shard in set(shards))


def _open_shards(folder: Path, index: Path) -> tuple[dict[str, Entry], tuple[Path, ...]]:
    """The tensors that an index lists, from the shards that it names."""
    where: dict[str, str] = read_json(index).get("weight_map", {})
    shards: dict[str, Tensors] = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise WeightsError(f"{index}: names {shard}, which is not beside it; copy it there")
        shards[shard] = open_tensors(folder / shard)
    for name, shard in where.items():
        if name not in shards[shard]:
            raise WeightsError(f"{folder / shard}: lacks {name}, which {index.name} says it holds")
    entries = {name: shards[shard].entries[name] for name, shard in where.items()}
    return entries, tuple(folder / shard for shard in shards)


def _open_safetensors(path: Path) -> dict[str, Entry]:
    from safetensors import SafetensorError, safe_open

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with safe_open(path, "np") as file:  # not kept open: it would stay mapped to memory
                return file.get_tensor(name)

        return read

    entries = {}
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                part = file.get_slice(name)
                kind = part.get_dtype()
                if kind not in SAFE_DTYPES:
                    raise WeightsError(f"{path}: {name} is {kind}; convert it to bfloat16 first")
                info = TensorInfo(tuple(part.get_shape()), np.dtype(SAFE_DTYPES[kind]), path)
                entries[name] = Entry(info, reader(name))
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: can't be read as safetensors ({error}); download it anew"
        ) from error
    return entries
