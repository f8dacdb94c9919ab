"""What a check finds, of files and texts made to have it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vljax.data.check import Subject, check, format_report, look, look_at_text
from vljax.data.clips import FrameSpec
from vljax.data.examples import Record
from vljax.data.pipeline import TextSpec

TOKENIZER = str(Path(__file__).parent.parent / "golden" / "tokenizer.model")
TEXT = TextSpec(TOKENIZER, "vicuna", media=2, limit=40, lengths=(64,))
FRAMES = FrameSpec(count=4, size=24)


@pytest.fixture
def records(tmp_path, write, grey_frames, tone) -> list[Record]:
    """A clip with sound, one without, an image; then one missing, one empty, one of text."""
    write(tmp_path / "0.mp4", grey_frames(20), tone(2, 16000, 1), fps=10)
    write(tmp_path / "1.mp4", grey_frames(40, 32, 48), fps=20)
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(tmp_path / "2.jpg")
    (tmp_path / "4.mp4").touch()
    (tmp_path / "5.mp4").write_text("no clip")
    names = ["0.mp4", "1.mp4", "2.jpg", "3.mp4", "4.mp4", "5.mp4"]
    return [
        Record(n[0], tmp_path / n, "image" if "jpg" in n else "video", caption="a dog")
        for n in names
    ]


def run(records, **fields):
    fields = {"frames": FRAMES, "text": TEXT} | fields
    return check(Subject("s", records, **fields), workers=1, seconds=20)


def problems(report) -> dict[str, int]:
    return {p.kind: p.count for p in report.problems}


def test_a_sound_data_set(records):
    report = run(records[:3])
    assert report.ok
    assert report.problems == ()
    assert (report.records, report.looked, report.clips, report.images) == (3, 3, 2, 1)
    assert report.sound == 1
    assert report.seconds == (2.0, 2.0, 2.0, 2.0)
    assert (report.fps[0], report.fps[-1]) == (10.0, 20.0)
    assert report.resolutions == {"64x48": 1, "48x32": 1, "50x30": 1}
    assert report.limit == 40


def test_files_that_cannot_be_read_break(records):
    report = run(records)
    assert problems(report) == {"missing": 1, "unreadable": 2}
    assert not report.ok
    missing, unreadable = report.problems
    assert missing.examples[0][0] == "3"
    assert [id for id, _ in unreadable.examples] == ["4", "5"]
    assert "is empty" in unreadable.examples[0][1]
    assert "not a readable video" in unreadable.examples[1][1]
    assert "ERROR" in format_report(report)


def test_a_share_of_unreadable_files_may_be_skipped(records):
    assert run(records, max_bad=0.34).ok
    assert not run(records, max_bad=0.3).ok


def test_duplicates_only_warn_and_few_records_break(records):
    twice = [*records[:2], dataclasses.replace(records[2], id="0")]
    report = run(twice)
    assert report.ok
    assert report.problems[0].examples == (("0", "records 0 and 2"),)
    assert problems(run(twice, batch_size=4)) == {"duplicate": 1, "few": 1}
    assert not run(twice, batch_size=4).ok


def test_a_sample_is_a_part_drawn_by_the_seed(records):
    subject = Subject("s", records, FRAMES)
    first, again = (check(subject, 2, seed=1, workers=1) for _ in range(2))
    assert first == again
    assert (first.records, first.looked) == (6, 2)
    assert first.limit is None
    assert "no tokenizer" in format_report(first)


def test_progress_is_told(records):
    told = []
    check(Subject("s", records[:2]), workers=1, progress=lambda *p: told.append(p))
    assert told == [(1, 2), (2, 2)]


def test_headtail_frames_of_an_odd_clip_are_unreadable(tmp_path, write, grey_frames):
    path = write(tmp_path / "a.mp4", grey_frames(3), fps=10)
    seen = look(Record("a", path, "video", caption="a"), FrameSpec(4, 24, "headtail"), None)
    assert [kind for kind, _ in seen.problems] == ["unreadable"]
    assert "headtail" in seen.problems[0][1]


def talk(before: str, answer: str = "yes") -> Record:
    turns = (("human", before + "<image>"), ("gpt", answer))
    return Record("t", Path("t.jpg"), "image", turns=turns)


@pytest.mark.parametrize(
    ("record", "kinds"),
    [
        (talk("who? "), []),
        (talk("dog " * 99), ["text"]),
        (talk("who? ", "dog " * 99), ["cut"]),
        (talk("dog " * 26), ["cut", "untaught"]),
        (Record("c", Path("c.jpg"), "image", caption="dog"), []),
        (Record("c", Path("c.jpg"), "image", caption="dog " * 99), ["cut"]),
    ],
)
def test_texts(record, kinds):
    spec = dataclasses.replace(TEXT, masking="clean")
    tokens, found = look_at_text(record, spec, "")
    assert [kind for kind, _ in found] == kinds
    assert tokens > 40 if kinds else tokens <= 40


def test_a_text_for_which_there_is_no_length():
    spec = dataclasses.replace(TEXT, limit=200, lengths=(64,))
    _, found = look_at_text(Record("c", Path("c"), "image", caption="dog " * 99), spec, "")
    assert found[0][0] == "text"
    assert "expected at most 64" in found[0][1]


def test_a_clip_that_kills_the_decoder_is_told(records, monkeypatch):
    from vljax.data import check as module
    from vljax.data.decode_worker import DecoderDied

    class Dying:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, *_):
            from concurrent.futures import Future

            answer: Future = Future()
            answer.set_exception(DecoderDied("it crashed the decoder (SIGSEGV)"))
            return answer

    monkeypatch.setattr(module, "Decoders", Dying)
    report = run(records[:1])
    assert report.problems[0].examples == (("0", "it crashed the decoder (SIGSEGV)"),)
    assert not report.ok
