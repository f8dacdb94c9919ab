"""Every kind of clip that is met: what of it is read, or the sentence that says why not."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vljax.data.audio import AudioSpec
from vljax.data.clips import FrameSpec, Media, load_media
from vljax.data.examples import Record
from vljax.data.video import MediaError

FRAMES = FrameSpec(count=4, size=16, augment=False)
SOUND = AudioSpec()


def load(path: Path, frames: FrameSpec = FRAMES) -> Media:
    return load_media(Record("x", path, "video"), frames, np.random.default_rng(0), SOUND)


@pytest.fixture
def clip(tmp_path: Path, write: Callable, grey_frames: Callable) -> Callable:
    def make(sound: np.ndarray | None = None, rate: int = 16000, frames: int = 20, **more) -> Path:
        name = "a.mkv" if more.get("sound_codec") else "a.mp4"
        return write(tmp_path / name, grey_frames(frames), sound, rate=rate, fps=10, **more)

    return make


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_sound_of_any_rate(clip: Callable, tone: Callable, rate: int, channels: int) -> None:
    path = clip(tone(2.5, rate, channels), rate, sound_codec="pcm_s16le")
    media = load(path)
    assert media.frames.shape == (4, 16, 16, 3)
    assert media.mel.shape == (8, 128, 204) and media.mel.dtype == np.float32
    plain = load(clip(tone(2.5, 16000, 1), 16000, sound_codec="pcm_s16le")).mel
    low = slice(0, 60)  # a tone of 440 Hz; what lies above is what resampling leaves of silence
    if channels == 1:
        assert np.abs(media.mel[:, low, 5:-10] - plain[:, low, 5:-10]).mean() < 0.1
    assert media.mel[0].mean(1).argmax() == pytest.approx(plain[0].mean(1).argmax(), abs=1)


def test_no_track_is_no_sound(clip: Callable) -> None:
    assert load(clip()).mel is None


def test_silence_is_sound(clip: Callable) -> None:
    media = load(clip(np.zeros((1, 32000), np.float32), sound_codec="pcm_s16le"))
    assert media.mel[:, :, :190].std() == pytest.approx(0, abs=1e-4)
    assert media.mel[0, 0, 0] == pytest.approx((np.log(1.1920929e-07) + 4.268) / 9.138, abs=1e-4)


@pytest.mark.parametrize(("seconds", "frames"), [(0.1, 8), (1.0, 98), (1.99, 197)])
def test_less_than_two_seconds_end_in_padding(
    clip: Callable, tone: Callable, seconds: float, frames: int
) -> None:
    mel = load(clip(tone(seconds, 16000, 1), sound_codec="pcm_s16le")).mel
    padding = np.float32(4.268 / 9.138)  # 0, normalised
    np.testing.assert_allclose(mel[:, :, frames:], padding, atol=1e-6)
    assert (np.abs(mel[:, :, frames - 1] - padding) > 1e-3).any()


def test_a_blink_is_no_sound(clip: Callable, tone: Callable) -> None:
    assert load(clip(tone(0.01, 16000, 1), sound_codec="pcm_s16le")).mel is None


def test_variable_frame_rate_is_told_by_the_average(clip: Callable) -> None:
    media = load(clip(frames=8, times=[0, 40, 200, 1000, 1010, 2500, 2540, 4000]))
    assert media.frames.shape[0] == 4 and media.message.startswith("The video contains 4 frames")


def test_one_frame(clip: Callable) -> None:
    path = clip(frames=1)
    assert load(path).frames.shape == (1, 16, 16, 3)
    with pytest.raises(MediaError, match="headtail sampling takes as many frames from each half"):
        load(path, dataclasses.replace(FRAMES, policy="headtail"))


def test_zero_bytes_and_text(tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("A letter.\n" * 99)
    for name, told in (("zero.mp4", "is empty"), ("text.mp4", "is not a readable video")):
        with pytest.raises(MediaError, match=f"{name} {told}"):
            load(tmp_path / name)


def test_a_track_that_nobody_can_decode_is_no_sound(clip: Callable, tone: Callable) -> None:
    path = clip(tone(2.0, 16000, 1), sound_codec="pcm_s16le")
    codec = b"A_PCM/INT/LIT"
    path.write_bytes(path.read_bytes().replace(codec, b"A_" + b"Q" * (len(codec) - 2)))
    media = load(path)
    assert media.frames.shape[0] == 4 and media.mel is None
