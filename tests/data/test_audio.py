"""Sound reading and mel clips: against the original's arrays, and on files written here."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vljax.data import audio
from vljax.data.audio import AudioSpec, clip_bounds, log_mel, mel_clips, read_audio, resample
from vljax.data.video import MediaError

GOLDEN = np.load(Path(__file__).parents[1] / "golden/audio_prep.npz")
MEL_ATOL = 5e-3  # near-silent bins amplify rounding
CLIPS = {"sweep": [0, 3, 7], "noise_short": [0, 7], "synthetic_resampled": [0, 7]}
TINY = AudioSpec(mel_bins=32, clip_seconds=1.0, mel_frames=96)


def golden_wave(name: str) -> tuple[np.ndarray, int]:
    pcm = GOLDEN[f"{name}/pcm_int16"].astype(np.float32) / 32768
    return pcm, int(GOLDEN[f"{name}/sample_rate"])


@pytest.mark.parametrize("name", CLIPS)
def test_mel_clips_match_the_original(name: str) -> None:
    wave, rate = golden_wave(name)
    kept = wave.copy()
    mel = mel_clips(wave, rate, AudioSpec())
    want = GOLDEN[f"{name}/mel_clips_{'_'.join(map(str, CLIPS[name]))}"][:, 0]
    assert mel.shape == (8, 128, 204) and mel.dtype == np.float32
    np.testing.assert_allclose(mel[CLIPS[name]], want, rtol=0, atol=MEL_ATOL)
    np.testing.assert_array_equal(wave, kept)  # the caller's sound is left alone


@pytest.mark.parametrize("name", ["sweep", "noise_short"])
def test_clip_times_match_the_original(name: str) -> None:
    wave, rate = golden_wave(name)
    samples = wave.shape[1]
    assert samples / rate == GOLDEN[f"{name}/duration_s"]
    bounds = np.array(clip_bounds(samples, AudioSpec()))
    for column, side in enumerate(("start", "end")):
        np.testing.assert_array_equal(bounds[:, column], GOLDEN[f"{name}/clip_{side}_sample"])
        np.testing.assert_array_equal(bounds[:, column], GOLDEN[f"{name}/clip_{side}_s"] * rate)
    starts = [start for start, _ in clip_bounds(samples, AudioSpec(clips=3))]
    np.testing.assert_array_equal(
        starts, (GOLDEN[f"{name}/three_clips_start_s"] * rate).astype(int)
    )


@pytest.mark.parametrize("name", ["sweep", "noise_short"])
def test_three_clips_match_the_original(name: str) -> None:
    mel = mel_clips(*golden_wave(name), AudioSpec(clips=3))[:, :, :6]
    want = GOLDEN[f"{name}/three_clips_mel_first_frames"][:, 0]
    np.testing.assert_allclose(mel, want, rtol=0, atol=MEL_ATOL)


@pytest.mark.parametrize("clips", [3, 8])
@pytest.mark.parametrize("row", range(len(GOLDEN["clip_table/duration_s"])))
def test_clip_starts_match_the_original(row: int, clips: int) -> None:
    samples = round(GOLDEN["clip_table/duration_s"][row] * 16000)
    starts = [start for start, _ in clip_bounds(samples, AudioSpec(clips=clips))]
    assert starts == GOLDEN[f"clip_table/start_sample_{clips}_clips"][row].tolist()


def test_filter_bank_matches_the_original() -> None:
    wave = golden_wave("sweep")[0][0, :32000]
    mel = log_mel(wave - wave.mean(), AudioSpec())
    assert mel.shape == (198, 128) and mel.dtype == np.float32
    want = GOLDEN["fbank_raw/log_mel_frames_x_bins"]
    np.testing.assert_allclose(mel[: len(want)], want, rtol=0, atol=MEL_ATOL)

    bank = audio.mel_bank(AudioSpec())
    assert bank.shape == (128, 257) and not bank[:, 256].any()
    counts = GOLDEN["fbank_raw/mel_bank_128x256_nonzero_count"]
    np.testing.assert_array_equal((bank > 0).sum(1), counts)
    want = GOLDEN["fbank_raw/mel_bank_row_5_60_120"]
    np.testing.assert_allclose(bank[[5, 60, 120], :256], want, rtol=0, atol=2e-5)
    # The triangle of each band that holds a bin peaks within a bin of its centre frequency.
    wide = counts > 2
    peaks = bank.argmax(1) * 31.25
    assert np.abs(peaks - GOLDEN["fbank_raw/center_freqs_hz"][:, 0])[wide].max() < 31.25


def test_resampling_matches_the_original() -> None:
    wave, rate = golden_wave("synthetic_resampled")
    want = GOLDEN["synthetic_resampled/resampled_16k"]
    np.testing.assert_allclose(resample(wave, rate, 16000), want, rtol=0, atol=1e-5)


def resample_densely(wave: np.ndarray, rate: int, target: int) -> np.ndarray:
    """torchaudio's way, word for word: every tap of every phase, in float64."""
    common = np.gcd(rate, target)
    step, phases = rate // common, target // common
    base = 0.99 * min(step, phases)
    width = int(np.ceil(6 * step / base))
    j = np.arange(-width, width + step) / step
    t = np.clip((-np.arange(phases)[:, None] / phases + j) * base, -6, 6)
    kernel = np.sinc(t) * np.cos(np.pi * t / 12) ** 2 * base / step
    padded = np.pad(wave.astype(np.float64), ((0, 0), (width, width + step)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1], axis=1)[:, ::step]
    out = (windows @ kernel.T).reshape(len(wave), -1)
    return out[:, : -(-wave.shape[1] * phases // step)]


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000, 15999])
def test_resampling_of_any_rate_equals_the_dense_filter(rate: int) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, (2, 3001)).astype(np.float32)
    if rate == 15999:
        rate, target = 1599, 1600  # no common factor, at a size the dense filter can take
    else:
        target = 16000
    got = resample(wave, rate, target)
    assert got.shape == (2, -(-3001 * target // rate))
    np.testing.assert_allclose(got, resample_densely(wave, rate, target), rtol=0, atol=3e-6)


def test_in_place_means_reach_overlapping_clips() -> None:
    # Constant sound, clips overlap: the second clip's first half has lost its mean already.
    spec = AudioSpec(clips=2, clip_seconds=1.0, mel_bins=32, mel_frames=98)
    wave = np.concatenate([np.zeros(8000), np.ones(16000)])[None].astype(np.float32)
    (_, end), (start, last) = clip_bounds(24000, spec)
    assert (end, start, last) == (16000, 4000, 20000)
    mel = mel_clips(wave, 16000, spec)
    alone = wave[0, start:last] - wave[0, start:last].mean()
    alone = (log_mel(alone, spec) - spec.mean) / spec.std
    # Sample 16000 is a step of 0.5 for the in-place way, and none for a copy.
    frame = (16000 - start) // 160 - 1
    assert mel[1, :, frame].mean() > alone[frame].mean() + 0.5


def test_short_sounds() -> None:
    spec = AudioSpec()
    assert mel_clips(np.ones((1, 399), np.float32), 16000, spec) is None
    assert mel_clips(np.ones((2, 0), np.float32), 16000, spec) is None
    assert mel_clips(np.ones((1, 1000), np.float32), 48000, spec) is None  # 334 at 16 kHz
    one = mel_clips(np.ones((1, 400), np.float32), 16000, spec)
    padding = np.float32(4.268 / 9.138)
    np.testing.assert_allclose(one[:, :, 1:], padding, rtol=1e-6)
    silence = (np.log(np.float32(1.1920929e-07)) + 4.268) / 9.138
    np.testing.assert_allclose(one[:, :, 0], silence, rtol=1e-5)
    with pytest.raises(ValueError, match="399 samples"):
        log_mel(np.ones(399, np.float32), spec)


def test_everything_scales_with_the_spec() -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, (1, 3 * 16000)).astype(np.float32)
    mel = mel_clips(wave, 16000, TINY)
    assert mel.shape == (8, 32, 96)
    assert np.isfinite(mel).all()
    assert [s for s, _ in clip_bounds(48000, TINY)] == [i * 4000 for i in range(8)]
    shifted = AudioSpec(mel_bins=32, clip_seconds=1.0, mel_frames=96, mean=0.0, std=1.0)
    want = mel_clips(wave, 16000, shifted)
    np.testing.assert_allclose(mel * 9.138 - 4.268, want, atol=1e-4)
    third = AudioSpec(clip_seconds=Fraction(4, 3), clips=3)
    assert clip_bounds(5 * 16000, third)[0] == (0, 21333)
    assert mel_clips(wave, 16000, AudioSpec(rate=8000, mel_bins=32)).shape == (8, 32, 204)
    with pytest.raises(ValueError, match="clip_seconds"):
        AudioSpec(clip_seconds=0.02)


def dominant_hertz(mono: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(mono)).argmax() * rate / len(mono))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_sound_of_a_video(
    tmp_path: Path, write: Callable, grey_frames: Callable, tone: Callable, rate: int, channels: int
) -> None:
    path = tmp_path / "clip.mp4"
    write(path, grey_frames(30), tone(1.2, rate, channels), rate=rate)
    wave, got_rate = read_audio(path)
    assert got_rate == rate and len(wave) == channels and wave.dtype == np.float32
    assert wave.shape[1] == pytest.approx(1.2 * rate, abs=2048)  # AAC pads to whole frames
    middle = wave[:, rate // 4 : rate]
    for channel, samples in enumerate(middle):
        assert dominant_hertz(samples, rate) == pytest.approx(440, abs=2)
        assert samples.std() * 2**0.5 == pytest.approx(0.5 / (channel + 1), rel=0.05)
    mel = mel_clips(wave, rate, TINY)
    loudest = mel[:, :, :90].mean((0, 2)).argmax()
    edges = np.linspace(*1127 * np.log1p(np.array([20, 8000]) / 700), 34)
    assert abs(edges[loudest + 1] - 1127 * np.log1p(440 / 700)) < edges[1] - edges[0]


@pytest.mark.parametrize(
    ("name", "codec", "atol"),
    [
        ("a.wav", "pcm_s16le", 1e-4),
        ("b.wav", "pcm_u8", 1e-2),
        ("c.wav", "pcm_s32le", 1e-6),
        ("d.wav", "pcm_f32le", 0),
        ("e.wav", "pcm_f64le", 0),
        ("f.flac", "flac", 1e-4),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_sound_files(
    tmp_path: Path, write: Callable, tone: Callable, name: str, codec: str, atol: float, channels
) -> None:
    sent = tone(0.3, 22050, channels)
    write(tmp_path / name, sound=sent, rate=22050, sound_codec=codec)
    wave, rate = read_audio(tmp_path / name)
    assert rate == 22050
    np.testing.assert_allclose(wave, sent, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.mp3", "libmp3lame", 44100), ("b.m4a", "aac", 48000), ("c.ogg", "libopus", 48000)],
)
def test_lossy_sound_files(
    tmp_path: Path, write: Callable, tone: Callable, name: str, codec: str, rate: int
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    write(tmp_path / name, sound=tone(1.0, rate, 2), rate=rate, sound_codec=codec)
    wave, got_rate = read_audio(tmp_path / name)
    assert got_rate == rate and len(wave) == 2
    assert dominant_hertz(wave[0, rate // 4 :], rate) == pytest.approx(440, abs=3)


def test_no_sound_is_none(tmp_path: Path, write: Callable, grey_frames: Callable) -> None:
    assert read_audio(write(tmp_path / "mute.mp4", grey_frames(5))) is None
    assert read_audio(write(tmp_path / "mute.gif", grey_frames(5), codec="gif")) is None
    header = write(
        tmp_path / "empty.wav", sound=np.zeros((1, 0), np.float32), sound_codec="pcm_s16le"
    )
    assert read_audio(header) is None


def test_a_sound_cut_short_is_read_as_far_as_it_goes(
    tmp_path: Path, write: Callable, tone: Callable
) -> None:
    whole = write(tmp_path / "whole.mp3", sound=tone(2.0, 44100, 1), rate=44100, sound_codec="mp3")
    cut = tmp_path / "cut.mp3"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    wave, _ = read_audio(cut)
    assert wave.shape[1] == pytest.approx(44100, rel=0.15)


def test_files_that_are_no_media(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello " * 200)
    for name, message in (
        ("empty.wav", "empty.wav is empty"),
        ("text.wav", "text.wav is not a readable video or sound file"),
        ("missing.wav", "no such file"),
        (".", "a folder"),
    ):
        with pytest.raises(MediaError, match=message):
            read_audio(tmp_path / name)
