"""Sound to mel clips, as ImageBind's audio tower expects them.

Source: Video-LLaMA `models/ImageBind/data.py`, torchaudio 2.0 (`functional.resample`,
`compliance.kaldi.fbank`) and pytorchvideo 0.1.5 (`ConstantClipsPerVideoSampler`), in plain numpy:
importing librosa or torchaudio takes seconds, and neither has Kaldi's mel bank outside torch.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, gcd

import av
import numpy as np

from vljax.data.examples import MediaFile
from vljax.data.video import decode, demux, open_media

_EPSILON = np.float32(1.1920929e-07)
# Offset and full scale of ffmpeg's sample formats; a trailing "p" (planar) changes neither.
_SCALES = {"u8": (128, 2**7), "s16": (0, 2**15), "s32": (0, 2**31), "s64": (0, 2**63)}


@dataclass(frozen=True)
class AudioSpec:
    """How sound becomes mel clips; the defaults are ImageBind's."""

    rate: int = 16000  # samples a second
    clips: int = 8
    clip_seconds: float | Fraction = 2.0  # taken as the exact fraction it is
    mel_bins: int = 128
    mel_frames: int = 204
    mean: float = -4.268
    std: float = 9.138

    def __post_init__(self) -> None:
        if self.clip_seconds * self.rate < self.window:
            raise ValueError(
                f"clip_seconds: got {self.clip_seconds}, expected at least the "
                f"{self.window} samples of one mel frame at {self.rate} Hz: use longer clips"
            )

    @property
    def window(self) -> int:
        """Samples of one mel frame: 25 ms."""
        return self.rate * 25 // 1000

    @property
    def hop(self) -> int:
        """Samples between mel frames: 10 ms."""
        return self.rate * 10 // 1000


def read_audio(path: str | MediaFile) -> tuple[np.ndarray, int] | None:
    """The first sound track of a video or sound file: ([channels, samples] float32, rate).

    Full scale is -1..1 and channels are not mixed. None where there is no track, or none of it can
    be decoded. Raises MediaError for a file that is missing, empty or no media.
    """
    track = Track()
    with open_media(path) as container:
        stream = track.choose(container)
        for packet in demux(container, stream) if stream else ():
            track.take(packet)
    return track.whole()


class Track:
    """A sound track that is put together packet by packet; see `read_audio`."""

    def __init__(self) -> None:
        self._format: tuple[int, int] | None = None  # rate, channels
        self._chunks: list[np.ndarray] = []
        self._cut = False

    def choose(self, container: av.container.InputContainer) -> av.AudioStream | None:
        """The stream whose packets are to be taken, if there is one."""
        return next((s for s in container.streams.audio if s.codec_context), None)

    def take(self, packet: av.Packet) -> None:
        for frame in decode(packet):
            now = frame.sample_rate, frame.layout.nb_channels
            self._format = self._format or now
            # A track that changes its format half way is cut there, not guessed at.
            self._cut = self._cut or now != self._format
            if frame.samples and not self._cut:
                self._chunks.append(to_float(frame))

    def whole(self) -> tuple[np.ndarray, int] | None:
        """What `read_audio` gives."""
        if self._format is None or not self._chunks:
            return None
        return np.concatenate(self._chunks, axis=1), self._format[0]


def to_float(frame: av.AudioFrame) -> np.ndarray:
    """[channels, samples] float32, full scale -1..1."""
    offset, scale = _SCALES.get(frame.format.packed.name, (0, 1))
    samples = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.float32:
        return samples
    return ((samples.astype(np.float64) - offset) / scale).astype(np.float32)


def resample(waveform: np.ndarray, rate: int, target: int) -> np.ndarray:
    """[channels, samples] float32 at `rate` to ceil(samples * target / rate) samples at `target`.

    torchaudio's default: windowed sinc, filter width 6, roll-off 0.99, Hann window. Only the taps
    under the window are multiplied; outputs of one phase, which lie evenly, are made at once.
    """
    if rate < 1 or target < 1:
        raise ValueError(f"sample rates: got {rate} and {target}, expected 1 Hz or more")
    if rate == target:
        return waveform.astype(np.float32)
    step = rate // gcd(rate, target)
    weights = _sinc_taps(step, target // gcd(rate, target))
    phases, taps = weights.shape
    channels, samples = waveform.shape
    padded = np.pad(waveform.astype(np.float32), ((0, 0), (taps // 2 - 1, taps // 2 + 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis=1)
    out = np.empty((channels, ceil(samples * phases / step)), np.float32)
    for phase in range(min(phases, out.shape[1])):
        part = out[:, phase::phases]
        inputs = windows[:, phase * step // phases :: step][:, : part.shape[1]]
        np.einsum("cst,t->cs", inputs, weights[phase], out=part)
    return out


@lru_cache(maxsize=8)
def _sinc_taps(step: int, phases: int) -> np.ndarray:
    """Filter of each output phase: [phases, taps] on the inputs around phase * step / phases."""
    base = 0.99 * min(step, phases)
    width = ceil(6 * step / base)
    phase = np.arange(phases)[:, None]
    tap = phase * step // phases + np.arange(-width, width + 2)
    t = np.clip((tap / step - phase / phases) * base, -6, 6)
    return (np.sinc(t) * np.cos(np.pi * t / 12) ** 2 * base / step).astype(np.float32)


def clip_starts(samples: int, spec: AudioSpec) -> list[Fraction]:
    """Where each clip starts, in seconds, of a sound of so many samples.

    Starts are i / clips of what is left beside one clip, so the last clip never reaches the end.
    """
    # The room is a float difference, as in the original: 59.94 s - 2 s falls just short of 57.94.
    room = Fraction(max(samples / spec.rate - float(spec.clip_seconds), 0.0))
    return [room * i / spec.clips for i in range(spec.clips)]


def clip_bounds(samples: int, spec: AudioSpec) -> list[tuple[int, int]]:
    """(start, end) sample of each clip; `end` may lie past the end of a short sound."""
    length, starts = Fraction(spec.clip_seconds), clip_starts(samples, spec)
    return [(int(start * spec.rate), int((start + length) * spec.rate)) for start in starts]


def log_mel(mono: np.ndarray, spec: AudioSpec) -> np.ndarray:
    """Kaldi's log mel filter bank of [samples] float32: [frames, mel_bins] float32.

    Hann window of 25 ms every 10 ms, whole frames only, no dither, no energy. Raises ValueError
    for a sound shorter than one frame.
    """
    if len(mono) < spec.window:
        raise ValueError(
            f"log_mel: got {len(mono)} samples, expected at least {spec.window}: use a longer sound"
        )
    frames = np.lib.stride_tricks.sliding_window_view(mono, spec.window)[:: spec.hop]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - np.float32(0.97) * before) * np.hanning(spec.window).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, _fft_size(spec))) ** 2
    return np.log(np.maximum(power @ mel_bank(spec).T, _EPSILON))


def _fft_size(spec: AudioSpec) -> int:
    return 1 << (spec.window - 1).bit_length()


@lru_cache(maxsize=8)
def mel_bank(spec: AudioSpec) -> np.ndarray:
    """Triangles from 20 Hz to half the rate, linear in mel: [mel_bins, fft // 2 + 1] float32."""
    edges = _mel(mel_edges(spec))[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    at = _mel(np.fft.rfftfreq(_fft_size(spec), 1 / spec.rate))
    bank = np.minimum((at - low) / (centre - low), (high - at) / (high - centre))
    bank[:, -1] = 0  # Kaldi leaves the Nyquist bin out
    return np.maximum(bank, 0).astype(np.float32)


def mel_edges(spec: AudioSpec) -> np.ndarray:
    """Hertz [mel_bins + 2] where the triangles begin, peak and end, equally spaced in mel."""
    edges = np.linspace(_mel(20.0), _mel(spec.rate / 2), spec.mel_bins + 2)
    return 700.0 * np.expm1(edges / 1127.0)


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)


def mel_clips(waveform: np.ndarray, rate: int, spec: AudioSpec) -> np.ndarray | None:
    """[channels, samples] at `rate` to normalised clips [clips, mel_bins, mel_frames] float32.

    The mel of channel 0, after the mean over all channels is taken off. Frames missing at the end
    are 0 before normalisation, frames beyond `mel_frames` are cut. None where the sound is shorter
    than one mel frame.
    """
    wave = resample(waveform, rate, spec.rate)  # always a copy
    if wave.shape[1] < spec.window:
        return None
    out = np.zeros((spec.clips, spec.mel_bins, spec.mel_frames), np.float32)
    for clip, (start, end) in zip(out, clip_bounds(wave.shape[1], spec), strict=True):
        view = wave[:, start:end]
        # In place, so that a later clip sees what an overlapping one took off: the original's way.
        view -= view.mean()
        mel = log_mel(view[0], spec)[: spec.mel_frames]
        clip[:, : len(mel)] = mel.T
    return (out - np.float32(spec.mean)) / np.float32(spec.std)
