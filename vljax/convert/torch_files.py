"""Reads ``torch.save``'s files, zip and legacy, without torch and without executing pickles.

A pickle names functions to call. Ours resolves only the handful that a state dict needs, to
stand-ins that note where a tensor lies; whatever else a file names is refused by that name.
"""

import collections
import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from vljax.store import WeightsError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the legacy format
DTYPES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


@dataclasses.dataclass
class Storage:
    """A run of ``count`` numbers; ``offset`` is its first byte in the file, once known."""

    dtype: np.dtype
    count: int
    path: Path
    offset: int = -1


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage; ``start`` and ``strides`` in items."""

    storage: Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    @property
    def span(self) -> int:
        """Items from the first to the last that the view touches."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    def read(self) -> np.ndarray:
        """Reads the part of the file that this tensor lies in, and no more."""
        item = self.dtype.itemsize
        raw = np.fromfile(
            self.storage.path,
            np.uint8,
            count=self.span * item,
            offset=self.storage.offset + self.start * item,
        )
        if raw.size != self.span * item:
            raise WeightsError(f"{self.storage.path}: ends within a tensor; download it anew")
        steps = [s * item for s in self.strides]
        view = np.lib.stride_tricks.as_strided(raw.view(self.dtype), self.shape, steps)
        return np.asarray(view, order="C")


def open_torch(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Names to tensors, and the plain values beside them (epoch, ...).

    Raises WeightsError for a file of another kind, a damaged one, and one that asks for more than
    tensors.
    """
    try:
        if zipfile.is_zipfile(path):
            content = _read_zip(path)
        else:
            with path.open("rb") as file:
                content = _read_legacy(path, file)
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(
            f"{path}: can't be read as a torch file ({type(error).__name__}: {error}); "
            "it may be cut off: download it anew"
        ) from error
    return _unwrap(path, content)


def _unwrap(path: Path, content: Any) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    metadata: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        metadata = {k: v for k, v in content.items() if isinstance(v, int | float | str)}
        content = content["model"]
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: got a {type(content).__name__}, expected named tensors")
    tensors = {str(k): v for k, v in content.items() if isinstance(v, StoredTensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise WeightsError(f"{path}: got {keys}, expected named tensors")
    return tensors, metadata


class _Unpickler(pickle.Unpickler):
    """Resolves what a state dict needs, and refuses the rest by name."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in DTYPES:
            return np.dtype(DTYPES[name])
        if (module, name) not in KNOWN:
            raise WeightsError(
                f"{self.path}: its pickle asks for {module}.{name}, which is no part of a state "
                "dict and is not run; save its tensors alone, or use a file you trust"
            )
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """("storage", dtype, key, location, count[, view]) -> the storage of that key."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise WeightsError(f"{self.path}: got a persistent id {kind!r}, expected a storage")
        if any(view):
            raise WeightsError(f"{self.path}: holds views of storages; save it anew with torch 1+")
        return self.storages.setdefault(str(key), Storage(dtype, int(count), self.path))


def _rebuild_tensor(storage: Any, start: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    """torch._utils._rebuild_tensor_v2. Checks that the view lies within its storage."""
    numbers = (start, *shape, *strides)
    if not isinstance(storage, Storage) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise WeightsError(f"got a tensor of shape {shape} and strides {strides} of no storage")
    tensor = StoredTensor(storage, start, tuple(shape), tuple(strides))
    # Tensors broadcast by strides of 0 could ask for any amount of memory.
    if start + tensor.span > storage.count or math.prod(shape) > storage.count:
        raise WeightsError(f"{storage.path}: a tensor of shape {shape} lies outside its storage")
    return tensor


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes, as protocol 2 has them
}


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [n for n in names if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(pickles) != 1:
            raise WeightsError(f"{path}: a zip with {len(pickles)} data.pkl, expected a torch file")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise WeightsError(f"{path}: was written big-endian; save it anew on another machine")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])), path)
        content = unpickler.load()
        with path.open("rb") as file:
            for key, storage in unpickler.storages.items():
                storage.offset = _place(archive.getinfo(f"{root}data/{key}"), storage, file)
    return content


def _place(info: zipfile.ZipInfo, storage: Storage, file: BinaryIO) -> int:
    """The first byte of an entry's data: behind its local header, which has lengths of its own."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{storage.path}: {info.filename} is compressed; zip it without")
    if info.file_size < storage.count * storage.dtype.itemsize:
        raise WeightsError(f"{storage.path}: {info.filename} is too short; download it anew")
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\3\4":
        raise WeightsError(f"{storage.path}: {info.filename} is not where the zip says")
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + name + extra


def _kind(head: bytes) -> str:
    """What a file that begins so must be, if it is no torch file."""
    if head.startswith(b"PK"):
        return "got a zip without an end; the download was cut off, repeat it"
    if head == b"version":
        return "got a git-lfs stub, expected a torch file; fetch it with git lfs pull"
    return "got a file of another kind, expected a torch file, a .safetensors or a .gguf"


def _read_legacy(path: Path, file: BinaryIO) -> Any:
    """Three pickles of who wrote it, the content, the storages' keys, then count and bytes each."""
    head = file.read(7)
    if head[:2] != b"\x80\x02":
        raise WeightsError(f"{path}: {_kind(head)}")
    file.seek(0)
    if (_Unpickler(file, path).load(), _Unpickler(file, path).load()) != (MAGIC, PROTOCOL):
        raise WeightsError(f"{path}: a pickle that torch.save did not write")
    system = _Unpickler(file, path).load()
    if not system.get("little_endian", True):
        raise WeightsError(f"{path}: was written big-endian; save it anew on another machine")
    unpickler = _Unpickler(file, path)
    content = unpickler.load()
    end = path.stat().st_size
    for key in _Unpickler(file, path).load():
        storage = unpickler.storages[str(key)]
        (count,) = struct.unpack("<q", file.read(8))
        storage.offset = file.tell()
        after = storage.offset + count * storage.dtype.itemsize
        if count != storage.count or after > end:
            raise WeightsError(f"{path}: ends within a tensor; download it anew")
        file.seek(after)
    return content
