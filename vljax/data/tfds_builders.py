"""A TFDS builder a family: media as the encoded bytes they are, and their texts, in record files.

What is stored keeps the order of the annotation file and every byte of the media, so batches are
those of the raw layout, bit for bit. Made in this process, or by Beam on any of its runners; read
at random, as exact resumption needs.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from vljax.data.examples import AnnotationError, Record, StoredFile
from vljax.data.sources import READERS, read

VERSION = "1.0.0"
FileFormat = Literal["array_record", "tfrecord"]
Progress = Callable[[int, int], None]  # records done, of how many
PART = 256  # records that a Beam worker reads at a time


@dataclasses.dataclass(frozen=True)
class Origin:
    """A data set as it lies on disk; see ``sources.read``.

    Attributes:
      allow_missing: store empty bytes for files that are not there, so that every record keeps its
        number; reading one is an error then, or quarantined, as it is in the raw layout.
    """

    family: str
    annotations: str
    media: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    allow_missing: bool = False

    def records(self) -> list[Record]:
        return read(self.family, self.annotations, self.media, **self.options)


def prepare(
    origin: Origin,
    out: Path,
    file_format: FileFormat = "array_record",
    runner: str | None = None,
    beam_options: Sequence[str] = (),
    shards: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes ``origin`` below ``out`` and returns the folder of the records.

    Args:
      runner: name of a Beam runner ("DirectRunner", "DataflowRunner", "FlinkRunner",
        "SparkRunner"); without one, this process writes.
      beam_options: flags of that runner, such as "--project=NAME".
      shards: how many files; else as many as hold 1 GiB each.
      progress: told how many records are written; by Beam it is not.

    Raises:
      AnnotationError: no such family, annotations that are not its, files that are not there.
      FileExistsError: ``out`` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: not empty; name a new folder, or delete this one first")
    tfds = _tfds()
    records = origin.records()
    if not origin.allow_missing:
        require_files(origin, records)
    options: dict[str, Any] = {}
    if runner is not None:
        beam_options_ = _beam("options.pipeline_options").PipelineOptions(list(beam_options))
        options = {"beam_runner": _runner(runner), "beam_options": beam_options_}
    built = builder(origin, out, file_format, by_beam=runner is not None, progress=progress)
    # The checksums would be those of downloads, of which there are none.
    config = tfds.download.DownloadConfig(register_checksums=False, num_shards=shards, **options)
    with contextlib.redirect_stdout(sys.stderr):
        built.download_and_prepare(download_config=config)
    return Path(built.data_dir)


def require_files(origin: Origin, records: Sequence[Record]) -> None:
    """Raises AnnotationError with a count and an example if media files are not there."""
    paths = [Path(str(r.path)) for r in records]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        missing = [p for p, there in zip(paths, pool.map(Path.is_file, paths)) if not there]  # noqa: B905
    if missing:
        raise AnnotationError(
            f"{origin.annotations}: {len(missing)} of {len(paths)} media files are not there, such "
            f"as {missing[0]}; fetch them, or say --allow-missing to store them as unreadable"
        )


def builder(
    origin: Origin,
    data_dir: Path,
    file_format: FileFormat = "array_record",
    by_beam: bool = False,
    progress: Progress | None = None,
) -> Any:
    """The ``tfds.core.GeneratorBasedBuilder`` of a family, named after it.

    It has a split "train", and a split "texts" of the same records without their media: of most
    records of a batch a host needs the texts alone.
    """
    if origin.family not in READERS:
        raise AnnotationError(
            f"family: got {origin.family!r}, expected one of {', '.join(READERS)}"
        )
    tfds = _tfds()

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, name-defined]
        name = origin.family
        VERSION = tfds.core.Version(VERSION)
        code_path = None  # TFDS would look checksums up beside it, with a package it lacks

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(_features(tfds)),
                metadata=tfds.core.MetadataDict(
                    family=origin.family, options=_canonical(origin.options)
                ),
                disable_shuffling=True,  # batches are drawn at random; files keep the order
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            if by_beam:
                return {"train": beam_examples(origin), "texts": beam_examples(origin, False)}
            return {
                "train": local_examples(origin, True, progress),
                "texts": local_examples(origin, False),
            }

        def _generate_examples(self) -> None:
            """Only to be there: ``_split_generators`` names the examples."""

    return Builder(data_dir=str(data_dir), file_format=file_format)


def _features(tfds: Any) -> dict[str, Any]:
    import numpy as np

    texts = ("id", "path", "kind", "caption", "turns", "tags")
    return {name: tfds.features.Text() for name in texts} | {
        "frame_message": np.bool_,
        "media": tfds.features.Tensor(shape=(), dtype=np.object_),
    }


Example = dict[str, Any]


def to_example(record: Record, origin: Origin, whole: bool = True) -> Example:
    """What is stored: turns and tags as JSON, the path below the media's folder.

    The media's bytes only of a ``whole`` example.
    """
    path = Path(str(record.path))
    there = path.is_file() or not origin.allow_missing
    return {
        "id": record.id,
        "path": str(path.relative_to(origin.media)),
        "kind": record.kind,
        "caption": record.caption or "",
        "turns": json.dumps(record.turns),
        "tags": json.dumps(record.tags),
        "frame_message": record.frame_message,
        "media": path.read_bytes() if whole and there else b"",
    }


def from_example(example: Example, media: Callable[[], bytes]) -> Record:
    """The record again, its media to be read by a call. Only conversations have turns."""
    turns = tuple((role, text) for role, text in json.loads(example["turns"]))
    before, after = json.loads(example["tags"])
    return Record(
        id=example["id"].decode(),
        path=StoredFile(Path(example["path"].decode()), media),
        kind="video" if example["kind"] == b"video" else "image",
        caption=None if turns else example["caption"].decode(),
        turns=turns,
        tags=(before, after),
        frame_message=bool(example["frame_message"]),
    )


def local_examples(
    origin: Origin, whole: bool, progress: Progress | None = None
) -> Iterator[tuple[int, Example]]:
    records = origin.records()
    for number, record in enumerate(records):
        yield number, to_example(record, origin, whole)
        if progress:
            progress(number + 1, len(records))


def beam_examples(origin: Origin, whole: bool = True) -> Any:
    """The same as a Beam transform: workers read the annotations themselves, a part at a time.

    So what is sent to them is small however large the data set; it must be readable from there.
    """
    beam = _beam()
    parts = -(-len(origin.records()) // PART)
    return (
        beam.Create(range(parts))
        | beam.Reshuffle()
        | beam.FlatMap(part_of_examples, origin=origin, whole=whole)
    )


def part_of_examples(part: int, origin: Origin, whole: bool) -> Iterator[tuple[int, Example]]:
    records = _records_of(
        origin.family, origin.annotations, origin.media, _canonical(origin.options)
    )
    for number in range(part * PART, min((part + 1) * PART, len(records))):
        yield number, to_example(records[number], origin, whole)


@functools.lru_cache(maxsize=1)
def _records_of(family: str, annotations: str, media: str, options: str) -> list[Record]:
    return read(family, annotations, media, **json.loads(options))


def _canonical(options: dict[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)


class StoredRecords(Sequence[Record]):
    """Records of a folder that ``prepare`` wrote, read when asked for; their media later still.

    Raises AnnotationError if there are none, or they are of another family or read with other
    options than said.
    """

    def __init__(
        self, folder: str | Path, family: str | None = None, options: dict[str, Any] | None = None
    ):
        self._folder = Path(folder)
        found = sorted(self._folder.rglob("dataset_info.json")) if self._folder.is_dir() else []
        if len(found) != 1:
            raise AnnotationError(
                f"{folder}: got {len(found)} sets of records, expected one; name a folder that "
                "vljax data prepare wrote"
            )
        built = _tfds().builder_from_directory(str(found[0].parent))
        self._require(dict(built.info.metadata or {}), family, options)
        self._features = built.info.features
        self._texts, self._whole = open_split(built, "texts"), open_split(built, "train")

    def _require(self, stored: dict[str, Any], family: str | None, options: Any) -> None:
        wanted = {"family": family, "options": None if options is None else _canonical(options)}
        for name, value in wanted.items():
            if value is not None and stored.get(name) != value:
                raise AnnotationError(
                    f"{self._folder}: records of {name} {stored.get(name)}, expected {value}; "
                    "prepare them anew, or make the config say the same"
                )

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        number = int(index) % len(self)
        example = self._read(self._texts, number)
        return from_example(example, functools.partial(self.media, number))

    def media(self, number: int) -> bytes:
        """The encoded bytes of a record's file."""
        return self._read(self._whole, number)["media"]

    def _read(self, split: Sequence[bytes], number: int) -> Example:
        return self._features.deserialize_example_np(read_raw(split, number, self._folder))

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredRecords, (self._folder,)


def open_split(built: Any, split: str) -> Sequence[bytes]:
    """The serialised examples of a split, in either format."""
    if built.info.file_format.value == "tfrecord":
        return TFRecordFiles([str(p) for p in built.info.splits[split].filepaths])
    decoding = _tfds().decode.DeserializeMethod.RAW_BYTES
    return built.as_data_source(split, deserialize_method=decoding)


def read_raw(split: Sequence[bytes], number: int, folder: Path) -> bytes:
    """One of the serialised examples; raises OSError where its checksum is another."""
    import tensorflow as tf

    try:
        return split[number]
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise OSError(
            f"{folder}: record {number} is damaged ({error}); prepare them anew"
        ) from error


class TFRecordFiles(Sequence[bytes]):
    """Records of TFRecord files by number: one pass over their headers finds where each begins."""

    def __init__(self, paths: Sequence[str]):
        self._places = [(path, at) for path in paths for at in record_offsets(path)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        return read_at(*self._places[index])


def read_at(path: str, offset: int) -> bytes:
    # Not exported by TensorFlow, but the one reader of it that seeks and verifies checksums.
    from tensorflow.python.lib.io.tf_record import tf_record_random_reader

    return tf_record_random_reader(path).read(offset)[0]


def record_offsets(path: str) -> Iterator[int]:
    """Where records begin: a length of 8 bytes and its checksum of 4, the record, its checksum."""
    size, at = Path(path).stat().st_size, 0
    with open(path, "rb") as file:
        while at < size:
            yield at
            file.seek(at)
            at += 8 + 4 + int.from_bytes(file.read(8), "little") + 4


def _tfds() -> Any:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")
    tfds.disable_progress_bar()
    return tfds


def _beam(module: str = "") -> Any:
    import importlib

    try:
        return importlib.import_module("apache_beam" + (f".{module}" if module else ""))
    except ImportError as error:
        raise ValueError(
            f"--beam-runner: needs Apache Beam ({error}); pip install 'vljax[beam]', or leave the "
            "flag out"
        ) from error


def _runner(name: str) -> Any:
    try:
        return _beam("runners.runner").create_runner(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--beam-runner: got {name!r}, which Beam has not ({error})") from error
