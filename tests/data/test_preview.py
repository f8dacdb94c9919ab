"""Contact sheets: what is shown is what training is given."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vljax.data.check import Subject
from vljax.data.clips import FrameSpec
from vljax.data.examples import Record
from vljax.data.pipeline import TextSpec
from vljax.data.preview import Shown, draw, heat, show

TOKENIZER = str(Path(__file__).parent.parent / "golden" / "tokenizer.model")
TEXT = TextSpec(TOKENIZER, "vicuna", media=2, limit=64, masking="clean")
FRAMES = FrameSpec(count=4, size=24, augment=False)


@pytest.fixture
def clip(tmp_path, write, grey_frames, tone) -> Path:
    return write(tmp_path / "a.mp4", grey_frames(20), tone(2, 16000, 1), fps=10)


def test_a_caption_is_taught_after_its_media(clip):
    shown = show(Subject("s", [Record("a", clip, "video", caption="a dog")], FRAMES, TEXT), 0)
    assert shown.pieces[1:] == [("media", "[2 vectors]"), ("taught", " a dog\n")]
    assert shown.frames.shape == (4, 24, 24, 3)
    assert shown.mel.shape == (8, 128, 204)
    assert str(clip) in shown.title
    assert not shown.error


def test_a_conversation_teaches_the_answers_alone(clip):
    turns = (
        ("human", "<image> and <other> who?"),
        ("gpt", "a dog."),
        ("human", "sure?"),
        ("gpt", "no."),
    )
    shown = show(Subject("s", [Record("a", clip, "video", turns=turns)], FRAMES, TEXT), 0)
    taught = [words.strip() for kind, words in shown.pieces if kind == "taught"]
    assert taught == ["a dog.###", "no.###"]
    media = [(kind, words) for kind, words in shown.pieces if kind in ("media", "other")]
    assert media == [("media", "[2 vectors]"), ("other", "[2 vectors of another]")]
    given = "".join(words for kind, words in shown.pieces if kind == "masked")
    assert "who?" in given
    assert "sure?" in given


def test_without_a_tokenizer_the_words_are_shown(clip):
    shown = show(Subject("s", [Record("a", clip, "video", caption="a dog")], FRAMES), 0)
    assert shown.pieces == [("masked", "a dog")]


def test_what_cannot_be_read_is_told(tmp_path):
    shown = show(Subject("s", [Record("a", tmp_path / "a.mp4", "video", caption="x")], FRAMES), 0)
    assert "no such file" in shown.error
    draw([shown], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (np.asarray(sheet) == (180, 30, 30)).all(-1).any()


def test_the_sheet_shows_frames_sound_and_words(tmp_path):
    frames = np.full((2, 24, 24, 3), (250, 0, 250), np.uint8)
    mel = np.zeros((2, 8, 10), np.float32)
    mel[:, 0] = 1
    pieces = [("masked", "word " * 80), ("taught", "answer")]
    draw([Shown("title", frames, mel, pieces)], tmp_path / "a.png")
    draw([Shown("title", None, None, pieces)], tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        pixels = np.asarray(a)
        assert a.width == 1600
        assert a.height > b.height + 200
        assert (pixels == (250, 0, 250)).all(-1).sum() == 2 * 224 * 224
        assert (pixels == (214, 240, 224)).all(-1).any()  # what is taught is marked


def test_loud_is_bright_and_high_is_up():
    mel = np.zeros((4, 6), np.float32)
    mel[3] = 1
    pixels = heat(mel)
    assert pixels.shape == (4, 6, 3)
    assert (pixels[0] == (255, 255, 230)).all()
    assert (pixels[1:] == (0, 0, 8)).all()
