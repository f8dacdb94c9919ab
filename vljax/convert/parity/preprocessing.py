"""Sound, frames and images before the towers see them."""

import random
import re

import numpy as np

from vljax.convert.parity.compare import CLOSE, EXACT, MEL, PIXEL, Check, Tolerance
from vljax.convert.parity.golden import GoldenSet
from vljax.data import audio, video
from vljax.data.audio import AudioSpec

RATE = 16000  # of the original's audio tower
CLIPS = 8  # what the original's chat takes of a sound
SECONDS = Tolerance(1e-9, "absolute")
RAW_MEL = Tolerance(MEL.value * AudioSpec().std, "absolute")  # the same, before normalisation
FBANK_SAMPLES = 2 * RATE  # of the sweep, for the raw filter bank
SURE = 1e-3  # how near to a whole number a float's last bit decides between two greys


def audio_prep(golden: GoldenSet, check: Check) -> None:
    """audio_prep.npz, and audio_prep_real.npz: every waveform, the filter bank, clip placement."""
    for prefix in check.cases("pcm_int16"):
        with check.attempt(f"{prefix}pcm_int16"):
            _waveform(check, prefix)
    for prefix in check.cases("log_mel_frames_x_bins"):
        with check.attempt(f"{prefix}log_mel_frames_x_bins"):
            _filter_bank(check, prefix)
    for prefix in check.cases("duration_s"):
        if prefix + "pcm_int16" not in check:
            with check.attempt(f"{prefix}duration_s"):
                _clip_table(check, prefix)


def _waveform(check: Check, prefix: str) -> None:
    wave, rate = _wave(check, prefix), int(check[f"{prefix}sample_rate"])
    resampled = audio.resample(wave, rate, RATE)
    samples = resampled.shape[1]
    check(f"{prefix}resampled_16k", resampled)
    check(f"{prefix}duration_s", np.float64(samples / RATE), SECONDS)
    clips = len(check.get(f"{prefix}clip_start_s", range(CLIPS)))
    for lead, count in (("", clips), ("three_clips_", 3)):
        spec = AudioSpec(clips=count)
        starts = np.array([float(s) for s in audio.clip_starts(samples, spec)])
        stem = f"{prefix}{lead or 'clip_'}"
        check(f"{stem}start_s", starts, SECONDS)
        check(f"{stem}end_s", starts + spec.clip_seconds, SECONDS)
        bounds = np.array(audio.clip_bounds(samples, spec))
        check(f"{stem}start_sample", bounds[:, 0], EXACT)
        check(f"{stem}end_sample", bounds[:, 1], EXACT)
    _mels(check, prefix, wave, rate, clips)


def _mels(check: Check, prefix: str, wave: np.ndarray, rate: int, clips: int) -> None:
    mel = audio.mel_clips(wave, rate, AudioSpec(clips=clips))
    three = audio.mel_clips(wave, rate, AudioSpec(clips=3))
    assert mel is not None and three is not None, "sound shorter than one mel frame"
    for name in check.wants:
        if found := re.fullmatch(re.escape(prefix) + r"mel_clips((?:_\d+)+)", name):
            chosen = [int(i) for i in found[1].strip("_").split("_")]
            check(name, mel[chosen][:, None], MEL)
    first = f"{prefix}three_clips_mel_first_frames"
    if first in check:
        check(first, three[:, None, :, : check[first].shape[-1]], MEL)


def _wave(check: Check, prefix: str) -> np.ndarray:
    return check[f"{prefix}pcm_int16"].astype(np.float32) / 32768


def _filter_bank(check: Check, prefix: str) -> None:
    """``fbank_raw``: of the first two seconds of the sweep."""
    source = prefix.replace("fbank_raw", "sweep")
    if f"{source}pcm_int16" not in check:
        return
    spec, wave = AudioSpec(), _wave(check, source)[0, :FBANK_SAMPLES]
    name = f"{prefix}log_mel_frames_x_bins"
    check(name, audio.log_mel(wave - wave.mean(), spec)[: len(check[name])], RAW_MEL)
    bank = audio.mel_bank(spec)[:, :-1]  # the Nyquist bin has no weight, the original no column
    rows, bins = bank.shape
    check(f"{prefix}mel_bank_{rows}x{bins}_nonzero_count", (bank > 0).sum(1), EXACT)
    check(f"{prefix}center_freqs_hz", audio.mel_edges(spec)[1:-1, None])
    for name in check.wants:
        if found := re.fullmatch(re.escape(prefix) + r"mel_bank_row((?:_\d+)+)", name):
            check(name, bank[[int(i) for i in found[1].strip("_").split("_")]])


def _clip_table(check: Check, prefix: str) -> None:
    durations = check[f"{prefix}duration_s"]
    for name in check.wants:
        if found := re.fullmatch(re.escape(prefix) + r"start_sample_(\d+)_clips", name):
            spec = AudioSpec(clips=int(found[1]))
            bounds = [audio.clip_bounds(round(d * RATE), spec) for d in durations.tolist()]
            check(name, np.array([[start for start, _ in row] for row in bounds]), EXACT)


def video_image_prep(golden: GoldenSet, check: Check) -> None:
    """video_image_prep.npz: the transforms of clips and of images."""
    for prefix in check.cases("out"):
        with check.attempt(f"{prefix}out"):
            if prefix.startswith("image"):
                _image(check, prefix)
            elif f"{prefix}crop_top_left_height_width" in check:
                _train_clip(check, prefix)
            elif f"{prefix}frames_thwc_u8" in check:
                _eval_clip(check, prefix, check[f"{prefix}frames_thwc_u8"])
            elif f"{prefix}frames_cthw_f32" in check:
                frames = np.moveaxis(check[f"{prefix}frames_cthw_f32"], 0, -1)
                _eval_clip(check, prefix, frames)


def _eval_clip(check: Check, prefix: str, frames: np.ndarray) -> None:
    check(f"{prefix}out", np.moveaxis(video.eval_frames(frames), -1, 0), PIXEL)


def _image(check: Check, prefix: str) -> None:
    """ "image_eval/" and "image_train/" are of "image/", "..._upsample/" of "image_small/"."""
    source = "image_small" if "upsample" in prefix else "image"
    image = check[f"{source}/input_hwc_u8"]
    size = check[f"{prefix}out"].shape[-2:]
    box = check.get(f"{prefix}crop_top_left_height_width")
    if box is None:
        pixels = video.resize_image(image, size)
    else:
        pixels = video.crop_resize_image(image, tuple(box.tolist()), size)
    check(f"{prefix}out", np.moveaxis(video.normalise(pixels), -1, 0), PIXEL)


def _train_clip(check: Check, prefix: str) -> None:
    """ "train_hard_edges_0/" is the crop 0 of "train_hard_edges/"."""
    source = prefix.rstrip("/").rsplit("_", 1)[0]
    clip = np.moveaxis(check[f"{source}/clip_cthw"], 0, -1)
    box = tuple(check[f"{prefix}crop_top_left_height_width"].tolist())
    want = check[f"{prefix}out"]
    floats = video.crop_resize_float(clip, box, want.shape[-2:])
    check(f"{prefix}resized_float_before_uint8", np.moveaxis(floats, -1, 0), CLOSE)
    pixels = video.crop_resize_clip(clip, box, want.shape[-2:], wrap=True)
    unsure = np.abs(floats - np.round(floats)) <= SURE
    check(f"{prefix}out", np.moveaxis(_nearest(pixels, unsure, want), -1, 0), PIXEL)


def _nearest(pixels: np.ndarray, unsure: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Normalised pixels; where unsure, of a grey and its two neighbours the one that is wanted.

    The original casts floats to whole numbers without rounding, so that where one lies on a whole
    number, its last bit decides between two greys (modulo 256).
    """
    want = np.moveaxis(want, 0, -1)
    best = video.normalise(pixels)
    for shift in (1, 255):
        other = video.normalise((pixels.astype(int) + shift).astype(np.uint8))
        better = unsure & (np.abs(other - want) < np.abs(best - want))
        best = np.where(better, other, best)
    return best


def frame_sampling(golden: GoldenSet, check: Check) -> None:
    """frame_sampling.json: positions and messages, as the original's arithmetic has them."""
    for prefix in check.cases("indices"):
        with check.attempt(prefix.rstrip("/")):
            frames, n = check[f"{prefix}num_frames"], check[f"{prefix}n_frms"]
            if prefix.startswith("headtail"):
                rng = random.Random(check[f"{prefix}python_random_seed"])
                indices = video.headtail_indices(frames, n, rng, literal=True)
            else:
                indices = video.uniform_indices(frames, n, literal=True)
                message = video.frame_message(indices, check[f"{prefix}fps"])
                check(f"{prefix}message", message, EXACT)
            check(f"{prefix}indices", indices, EXACT)
