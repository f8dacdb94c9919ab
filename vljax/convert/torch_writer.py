"""Writes files that ``torch.load`` reads, weights_only too, without torch.

The zip holds ``data.pkl``, a pickle that says of each tensor which ``data/N`` it is.
"""

import pickle
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vljax.convert.torch_files import DTYPES

ROOT = "archive"
ALIGN = 64  # bytes; torch maps files to memory, and wants tensors to begin at multiples of it
STORAGES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def save_torch(
    path: Path, tensors: Iterable[tuple[str, np.ndarray]], wrap: str | None = "model"
) -> None:
    """Writes names and arrays, as ``{wrap: {...}}`` or bare; one array is held at a time."""
    said: list[tuple[str, bytes]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, (name, x) in enumerate(tensors):
            x = np.asarray(x, order="C")
            _add(archive, f"data/{key}", x.reshape(-1).view(np.uint8).data)
            said.append((name, _tensor(str(key), x)))
        content = _dict(said)
        if wrap is not None:
            content = _dict([(wrap, content)])
        _add(archive, "data.pkl", pickle.PROTO + b"\x02" + content + pickle.STOP)
        _add(archive, "byteorder", b"little")
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """An entry whose data begin at a multiple of ALIGN, by an extra field that fills the gap."""
    info = zipfile.ZipInfo(f"{ROOT}/{name}")
    assert archive.fp is not None
    begins = archive.fp.tell() + 30 + len(info.filename) + 4
    info.extra = struct.pack("<2sH", b"FB", -begins % ALIGN) + b"Z" * (-begins % ALIGN)
    archive.writestr(info, data)


def _dict(items: Iterable[tuple[str, bytes]]) -> bytes:
    pairs = b"".join(_text(key) + value for key, value in items)
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def _tensor(key: str, x: np.ndarray) -> bytes:
    """``torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())``."""
    storage = _tuple(
        _text("storage"),
        _global("torch", STORAGES[x.dtype]),
        _text(key),
        _text("cpu"),
        _number(x.size),
    )
    strides = [s // x.itemsize for s in x.strides]
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _number(0),
        _tuple(*map(_number, x.shape)),
        _tuple(*map(_number, strides)),
        pickle.NEWFALSE,
        _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _number(n: int) -> bytes:
    return pickle.LONG1 + b"\x08" + struct.pack("<q", n)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
