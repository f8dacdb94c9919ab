"""Records that cannot be read: an error or an empty row, a reason, a ceiling; no other clip."""

import ctypes
import dataclasses
import json
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vljax.data import quarantine
from vljax.data.decode_worker import Closed, Decoders
from vljax.data.examples import Record
from vljax.data.pipeline import FrameSpec, MediaSource, TextSpec, batches
from vljax.data.quarantine import Quarantine, Reader
from vljax.data.text import IGNORE
from vljax.data.video import MediaError

TOKENIZER = str(Path(__file__).parent.parent / "golden" / "tokenizer.model")
TEXT = TextSpec(TOKENIZER, "vicuna", media=2, limit=40)
BAD = 2


@pytest.fixture
def source(tmp_path) -> MediaSource:
    """Four pictures, the third of which is text."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
        records.append(Record(f"id{i}", path, "image", caption=f"dog {i}"))
    records[BAD].path.write_text("no picture")
    frames = FrameSpec(1, 24)
    return MediaSource("s", 1.0, 4, records, frames, TEXT, on_bad="skip", max_bad=0.25)


def batch(source, read=None):
    return source.batch(np.arange(4), np.random.default_rng(5), read=read)


def test_an_unreadable_record_is_an_error_that_names_it(source):
    source = dataclasses.replace(source, on_bad="raise")
    with pytest.raises(MediaError, match=r"record id2 of s .*2\.png.* as an image .*on_bad=skip"):
        batch(source)
    with pytest.raises(MediaError, match="record id2 of s"):  # and not in tf.data's words
        next(batches([source], 0, 1, workers=1))


def test_a_skipped_record_teaches_nothing_and_changes_no_other_row(source):
    got = batch(source)
    assert got["missing"].tolist() == [False, False, True, False]
    assert not got["frames"][BAD].any() and got["frame_mask"].all()
    assert (got["labels"][BAD] == IGNORE).all()
    Image.new("RGB", (60, 40)).save(source.records[BAD].path)
    mended = batch(source)
    assert not mended["missing"].any()
    np.testing.assert_array_equal(got["tokens"], mended["tokens"])  # its own text stays
    assert (mended["labels"][BAD] != IGNORE).any()
    for name, x in mended.items():
        rest = [0, 1, 3]
        np.testing.assert_array_equal(x[rest], got[name][rest], name)


def test_what_was_skipped_is_written_down_and_said(source, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        kept = Quarantine(tmp_path)
        for _ in range(2):
            batch(source, Reader(quarantine=kept))
    [row] = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert row["path"] == str(source.records[BAD].path)
    assert (row["id"], row["source"]) == ("id2", "s")
    assert row["reason"].startswith("2.png cannot be read as an image")
    assert row["when"].endswith("+00:00")
    [message] = [r.getMessage() for r in caplog.records]
    assert message.startswith("s: record id2 is skipped: 2.png cannot be read")


def test_a_run_that_goes_on_skips_what_it_skipped(source, tmp_path):
    first = batch(source, Reader(quarantine=Quarantine(tmp_path, host=1)))
    assert (tmp_path / "quarantine.1.jsonl").is_file()
    Image.new("RGB", (60, 40)).save(source.records[BAD].path)
    again = batch(source, Reader(quarantine=Quarantine(tmp_path)))
    assert again["missing"].tolist() == first["missing"].tolist()
    (tmp_path / "quarantine.1.jsonl").unlink()
    assert not batch(source, Reader(quarantine=Quarantine(tmp_path)))["missing"].any()


def test_too_many_are_an_error(source):
    strict = dataclasses.replace(source, max_bad=0.2)
    with pytest.raises(
        MediaError, match=r"source s: got 1 unreadable records, expected at most 20\.00% of 4"
    ):
        batch(strict)
    kept = Quarantine()
    for _ in range(5):  # a quarter stays a quarter
        batch(source, Reader(quarantine=kept))


@pytest.mark.parametrize("fields", [{"on_bad": "replace"}, {"max_bad": 2.0}])
def test_policies_that_do_not_exist(source, fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        dataclasses.replace(source, **fields)


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (time.sleep, (1000,), "decoding took longer than 1 s and was stopped"),
        (ctypes.string_at, (0,), "it crashed the decoder (SIGSEGV)"),
        (bytearray, (1 << 40,), "MemoryError: "),
    ],
)
def test_clips_that_hang_or_crash_the_decoder(source, monkeypatch, function, args, reason):
    """The third record's decoding is replaced by something worse."""
    kept = Quarantine()
    with Decoders(1, 1.0) as decoders:
        submit = decoders.submit

        def worse(load, record, *rest):
            return submit(function, *args) if record.id == "id2" else submit(load, record, *rest)

        monkeypatch.setattr(decoders, "submit", worse)
        got = batch(source, Reader(decoders, kept))
    assert got["missing"].tolist() == [False, False, True, False]
    assert list(kept.reasons.values()) == [reason]


def test_a_mistake_of_the_program_s_is_no_bad_record(source, monkeypatch):
    monkeypatch.setattr(quarantine, "load_media", lambda *args: [].append(1, 2))
    with pytest.raises(TypeError):
        batch(source)


def test_a_run_that_ends_in_the_middle_puts_no_record_into_quarantine(source, monkeypatch):
    kept = Quarantine()
    with Decoders(1, 60) as decoders:
        submit = decoders.submit
        monkeypatch.setattr(decoders, "submit", lambda *job: submit(time.sleep, 50))
        threading.Timer(1, decoders.close).start()
        with pytest.raises(Closed):
            batch(source, Reader(decoders, kept))
    assert kept.reasons == {}
