"""What frozen towers made of media, in files: written by ``vljax encode``, read by training.

::

    DIR/frame_tokens/facts.json         the encoder (a hash of its weights), shape, dtype
    DIR/frame_tokens/0000-000000.npy    the first shard of process 0: rows [N, *shape]
    DIR/frame_tokens/0000-000000.json   whose rows they are; written last, a shard is there with it

and so for every output. Rows are kept under the hash of their file's bytes and the view of it that
was encoded, such as "8 frames, uniform, 224 px"; and so are the reasons why files could not be
read. Names, sizes and times of files are noted only to spare reading them again: a file whose three
are as noted is taken to be unchanged.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import ml_dtypes  # noqa: F401  (makes "bfloat16" a name that numpy knows)
import numpy as np

from vljax.data.examples import MediaFile

VERSION = 1  # of the files, and of what is done to pixels and samples before they are encoded
PADDING = "padding"  # in a media hash's place: the black frame that follows a shorter clip's
SHARD_BYTES = 256 * 2**20
SHARD_SECONDS = 120.0  # of work that a kill may cost

Stamp = tuple[int, int]  # bytes and mtime_ns of a file


class FeaturesError(ValueError):
    """Features that are missing or were made of something else; one sentence with both sides."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where the rows of one view of one file lie; ``message`` tells the times of its frames."""

    shard: str
    start: int
    count: int
    message: str


def media_hash(path: MediaFile) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def file_stamp(path: MediaFile) -> Stamp:
    """(0, 0) of a file inside of a records file: that one has to be read."""
    if not isinstance(path, Path):
        return 0, 0
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


class Store:
    """One output: ``rows`` and ``bad`` by media hash and view, ``files`` by absolute path."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts: dict[str, Any] = {}
        self.rows: dict[tuple[str, str], Rows] = {}
        self.bad: dict[tuple[str, str], str] = {}
        self.files: dict[str, tuple[Stamp, str]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        if (folder / "facts.json").is_file():
            self.facts = json.loads((folder / "facts.json").read_text())
        for path in sorted(folder.glob("*-*.json")):
            index = json.loads(path.read_text())
            for media, view, *where in index["rows"]:
                self.rows[media, view] = Rows(path.stem, *where)
            self.bad |= {(media, view): reason for media, view, reason in index.get("bad", ())}
            for name, size, mtime, media in index["files"]:
                self.files[name] = (size, mtime), media

    def require(self, encoder: str) -> None:
        """Raises FeaturesError unless the encoder with that hash made what is in the store."""
        if not self.facts:
            raise FeaturesError(
                f"{self.folder}: got no facts.json, expected what vljax encode writes; run it with "
                "this config first"
            )
        for name, wanted in {"version": VERSION, "encoder": encoder}.items():
            if self.facts[name] != wanted:
                raise FeaturesError(
                    f"{self.folder}: was made by {name} {self.facts[name]}, and this run's is "
                    f"{wanted}; encode with this run's weights into another folder"
                )

    def noted(self, path: MediaFile) -> str | None:
        """The media hash of a file that is as it was noted; the file is not read."""
        if not isinstance(path, Path):
            return None
        stamp, media = self.files.get(str(path.absolute()), (None, None))
        return media if stamp is not None and path.is_file() and stamp == file_stamp(path) else None

    def find(self, path: MediaFile, view: str) -> Rows | None:
        """The rows of a view of a file; reads the file where it is not as it was noted."""
        if isinstance(path, Path) and not path.is_file():
            return None
        return self.rows.get((self.noted(path) or media_hash(path), view))

    def unreadable(self, path: MediaFile, view: str) -> str | None:
        """Why a file, as it is now, cannot be read, if that is known."""
        if isinstance(path, Path) and not path.is_file():
            return f"{path}: there is no such file"
        return self.bad.get((self.noted(path) or media_hash(path), view))

    def why_not(self, path: MediaFile, view: str) -> str:
        """A clause that says why ``find`` found nothing."""
        if isinstance(path, Path) and not path.is_file():
            return "there is no such file"
        if reason := self.unreadable(path, view):
            return f"it could not be read when it was encoded: {reason}"
        media = media_hash(path)
        views = sorted(v for m, v in self.rows if m == media)
        if views:
            return f'it was encoded as "{"; ".join(views)}" and is asked for as "{view}"'
        if isinstance(path, Path) and str(path.absolute()) in self.files:
            return "it is another file than the one of that name that was encoded"
        return "it was not encoded"

    def read(self, rows: Rows) -> np.ndarray:
        """[count, *shape]. Raises FeaturesError for a damaged shard."""
        if rows.shard not in self._arrays:
            path = self.folder / f"{rows.shard}.npy"
            try:
                array = np.load(path, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise FeaturesError(
                    f"{path}: can't be read ({error}); delete it with its .json and encode again"
                ) from error
            # numpy has no name for bfloat16 in a file: bare bytes come back.
            self._arrays[rows.shard] = array.view(np.dtype(self.facts["dtype"]))
        return self._arrays[rows.shard][rows.start : rows.start + rows.count]


class Writer:
    """Adds to a store, a shard at a time; several processes may, each under its own number.

    Raises FeaturesError where another encoder made what is there.
    """

    def __init__(self, store: Store, encoder: str, process: int = 0, limit: int = SHARD_BYTES):
        if store.facts:
            store.require(encoder)
        self.store, self._encoder, self._process, self._limit = store, encoder, process, limit
        store.folder.mkdir(parents=True, exist_ok=True)
        mine = [p.stem for p in store.folder.glob(f"{process:04}-*.json")]
        self._next = 1 + max((int(name.partition("-")[2]) for name in mine), default=-1)
        self._clear()

    def _clear(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._rows: list[tuple] = []
        self._files: list[tuple] = []
        self._bad: list[tuple] = []
        self._count = self._bytes = 0
        self._began = time.monotonic()

    @property
    def _shard(self) -> str:
        return f"{self._process:04}-{self._next:06}"

    def note(self, path: MediaFile, stamp: Stamp, media: str) -> None:
        """Notes whose bytes a file has."""
        if not isinstance(path, Path) or self.store.files.get(str(path.absolute())) == (
            stamp,
            media,
        ):
            return
        self._files.append((str(path.absolute()), *stamp, media))
        self.store.files[str(path.absolute())] = stamp, media

    def refuse(self, media: str, view: str, reason: str) -> None:
        """Notes that bytes cannot be read, and why."""
        if self.store.bad.get((media, view)) != reason:
            self.store.bad[media, view] = reason
            self._bad.append((media, view, reason))

    def add(self, media: str, view: str, rows: np.ndarray, message: str = "") -> None:
        """Keeps rows [count, *shape], and writes a shard when enough are kept."""
        entry = Rows(self._shard, self._count, len(rows), message)
        self.store.rows[media, view] = entry
        self._rows.append((media, view, entry.start, entry.count, message))
        self._arrays.append(rows)
        self._count += len(rows)
        self._bytes += rows.nbytes
        if self._bytes >= self._limit or time.monotonic() - self._began > SHARD_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Writes what is kept; killed meanwhile, it leaves the shards before as they are."""
        if self._rows:
            rows = np.concatenate(self._arrays)
            facts = {"version": VERSION, "encoder": self._encoder}
            self.store.facts = facts | {"shape": rows.shape[1:], "dtype": rows.dtype.name}
            _write_json(self.store.folder / "facts.json", self.store.facts)
            with _whole(self.store.folder / f"{self._shard}.npy") as file:
                np.save(file, rows)
        if self._rows or self._files or self._bad:
            index = {"rows": self._rows, "files": self._files, "bad": self._bad}
            _write_json(self.store.folder / f"{self._shard}.json", index)
            self._next += 1
        self._clear()


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there under its name only when all of it is on the disk."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _write_json(path: Path, value: Any) -> None:
    with _whole(path) as file:
        file.write((json.dumps(value) + "\n").encode())


@dataclasses.dataclass(frozen=True)
class Features:
    """A source's features, record by record, in place of its frames."""

    stores: Mapping[str, Store]  # by output
    rows: Mapping[str, Sequence[Rows]]  # by output, in the records' order
    padding: Mapping[str, np.ndarray]  # by output: what is made of a frame that is not there
    unreadable: Mapping[int, str] = dataclasses.field(default_factory=dict)  # reasons; no rows

    def message(self, index: int) -> str:
        """The sentence that tells the times of a record's frames."""
        return next(iter(self.rows.values()))[index].message

    def read(self, index: int) -> dict[str, np.ndarray]:
        """A record's outputs, each [T, *shape]."""
        return {name: store.read(self.rows[name][index]) for name, store in self.stores.items()}


def stack_features(
    read: Sequence[Mapping[str, np.ndarray] | None], padding: Mapping[str, np.ndarray], count: int
) -> dict[str, np.ndarray]:
    """Each output as float32 [B, count, *shape], and frame_mask [B, count].

    None stands for what could not be read: one frame, and that is black.
    """
    mask = np.zeros((len(read), count), bool)
    arrays = {"frame_mask": mask}
    for name, pad in padding.items():
        arrays[name] = np.empty((len(read), count, *pad.shape), np.float32)
        for i, outputs in enumerate(read):
            rows = pad[None] if outputs is None else outputs[name]
            n = min(len(rows), count)
            arrays[name][i, :n], arrays[name][i, n:] = rows[:n], pad
            mask[i, :n] = True
    return arrays
