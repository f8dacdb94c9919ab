"""Prepared records: the same batches as from files, bit for bit, whatever the family and format."""

import dataclasses
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.data.layouts import LAYOUTS, write_layouts
from vljax.data.examples import AnnotationError, Record, StoredFile
from vljax.data.pipeline import FrameSpec, MediaSource, TextSpec, batches
from vljax.data.tfds_builders import (
    Origin,
    StoredRecords,
    from_example,
    prepare,
    to_example,
)
from vljax.data.video import MediaError, open_media, read_image

pytest.importorskip("tensorflow_datasets")
TOKENIZER = str(Path(__file__).parent.parent / "golden" / "tokenizer.model")
COUNT = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Clips and images of noise, annotated in every family's own layout."""
    root = tmp_path_factory.mktemp("data")
    write_layouts(root, COUNT)
    return root


def origin(root: Path, name: str) -> Origin:
    family, annotations, media, options = LAYOUTS[name]
    return Origin(family, str(root / annotations), str(root / media), options)


@pytest.fixture(scope="module", params=LAYOUTS)
def prepared(request, root, tmp_path_factory) -> tuple[Origin, Path]:
    one = origin(root, request.param)
    out = tmp_path_factory.mktemp("records") / "out"
    prepare(one, out, shards=2)
    return one, out


def some_batches(records, steps: int = 3) -> list[tuple[str, dict[str, np.ndarray]]]:
    spec = TextSpec(TOKENIZER, "vicuna", media=2, limit=256, lengths=(64, 256))
    frames = FrameSpec(count=4, size=24, augment=True)
    source = MediaSource("s", 1.0, 2, records, frames, spec)
    return list(batches([source], 5, steps, workers=1))


def assert_same(left, right) -> None:
    for (_, a), (_, b) in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for field in a:
            assert a[field].dtype == b[field].dtype
            np.testing.assert_array_equal(a[field], b[field])


def test_batches_are_those_of_the_files_bit_for_bit(prepared):
    raw, stored = prepared[0].records(), StoredRecords(prepared[1])
    left = some_batches(raw)
    assert left[0][1]["frames"].any()
    assert_same(left, some_batches(stored))


def test_records_are_those_of_the_reader(prepared):
    raw, stored = prepared[0].records(), StoredRecords(prepared[1])
    assert len(stored) == len(raw) == COUNT
    for a, b in zip(raw, stored, strict=True):
        assert dataclasses.replace(b, path=a.path) == a
        assert b.path.read_bytes() == a.path.read_bytes()
        assert str(b.path) == str(a.path.relative_to(prepared[0].media))


def test_tfrecord_holds_the_same(root, tmp_path):
    one = origin(root, "llava_video")
    prepare(one, tmp_path / "out", "tfrecord", shards=2)
    stored = StoredRecords(tmp_path / "out")
    assert [r.path.read_bytes() for r in stored] == [r.path.read_bytes() for r in one.records()]
    assert_same(some_batches(one.records(), 1), some_batches(stored, 1))


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_damaged_record_is_told(root, tmp_path, file_format):
    folder = prepare(origin(root, "filter_cap"), tmp_path / "out", file_format, shards=1)
    (path,) = folder.glob(f"*train.{file_format}*")
    data = bytearray(path.read_bytes())
    media = origin(root, "filter_cap").records()[2].path.read_bytes()
    data[data.index(media[-40:]) + 10] ^= 1
    path.write_bytes(data)
    stored = StoredRecords(tmp_path / "out")
    with pytest.raises(OSError, match="prepare them anew"):
        stored[2].path.read_bytes()


def test_beam_writes_the_same(root, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    monkeypatch.setattr("vljax.data.tfds_builders.PART", 2)
    one = origin(root, "webvid")
    prepare(one, tmp_path / "out", runner="DirectRunner", shards=3)
    stored = StoredRecords(tmp_path / "out")
    assert [r.id for r in stored] == [r.id for r in one.records()]
    assert_same(some_batches(one.records()), some_batches(stored))


def test_an_unknown_runner_is_told(root, tmp_path):
    with pytest.raises(ValueError, match=r"--beam-runner: (needs Apache Beam|got 'NoRunner')"):
        prepare(origin(root, "webvid"), tmp_path / "out", runner="NoRunner")


def test_texts_are_read_without_media(prepared, monkeypatch):
    stored = StoredRecords(prepared[1])
    monkeypatch.setattr(stored, "_whole", None)
    with pytest.raises(TypeError):
        stored[0].path.read_bytes()
    assert {r.kind for r in stored} <= {"video", "image"}


def test_records_travel_to_another_process(prepared):
    stored = StoredRecords(prepared[1])
    record = pickle.loads(pickle.dumps(stored[1]))
    assert record.path.data == stored[1].path.data
    assert pickle.loads(pickle.dumps(stored))[-1].id == stored[COUNT - 1].id
    with pytest.raises(IndexError):
        stored[COUNT]


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_missing_files_are_told_or_kept_as_unreadable(root, tmp_path, file_format):
    rows = [{"image_id": n, "caption": "x"} for n in ("000", "nowhere", "001")]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": rows}))
    one = Origin("filter_cap", str(tmp_path / "a.json"), str(root / "image"))
    with pytest.raises(AnnotationError, match=r"1 of 3 media files are not there, such as .*nowh"):
        prepare(one, tmp_path / "out", file_format)
    assert not (tmp_path / "out").exists()
    prepare(dataclasses.replace(one, allow_missing=True), tmp_path / "out", file_format)
    stored = StoredRecords(tmp_path / "out")
    assert [r.id for r in stored] == ["000", "nowhere", "001"]
    with pytest.raises(MediaError, match=r"nowhere\.jpg is empty"):
        read_image(stored[1].path)


def test_nothing_is_overwritten(prepared):
    with pytest.raises(FileExistsError, match="not empty; name a new folder"):
        prepare(*prepared)


def test_records_of_something_else_are_told(prepared, tmp_path):
    one, out = prepared
    StoredRecords(out, one.family, one.options)
    with pytest.raises(AnnotationError, match="records of family"):
        StoredRecords(out, "other")
    with pytest.raises(AnnotationError, match="records of options"):
        StoredRecords(out, one.family, {"prefix": "other"})
    with pytest.raises(AnnotationError, match="got 0 sets of records"):
        StoredRecords(tmp_path)


def test_an_unknown_family_is_told(tmp_path):
    with pytest.raises(AnnotationError, match="family: got 'nothing', expected one of webvid"):
        prepare(Origin("nothing", "", ""), tmp_path / "out")


def test_an_empty_caption_stays_a_caption(tmp_path):
    record = Record("1", tmp_path / "a.jpg", "image", caption="")
    record.path.touch()
    example = to_example(record, Origin("filter_cap", "", str(tmp_path)))
    raw = {k: v.encode() if isinstance(v, str) else v for k, v in example.items()}
    assert dataclasses.replace(from_example(raw, bytes), path=record.path) == record


def test_a_stored_file_reads_its_bytes_once_and_late():
    count = itertools.count()
    file = StoredFile(Path("a/b.mp4"), lambda: b"x" * (1 + next(count)))
    assert next(count) == 0
    assert file.data == file.data == b"xx"
    assert (file.name, file.suffix, str(file)) == ("b.mp4", ".mp4", str(Path("a/b.mp4")))
    with pytest.raises(MediaError, match=r"b\.mp4 is not a readable video"):
        open_media(file)
