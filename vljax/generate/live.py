"""Following a stream: what arrives is encoded once, kept as tokens, and asked about at any time.

What a second of stream costs does not grow: ``fps`` frames and ``1 / hop`` sounds go through the
towers, a chunk at a time. Nor does what is held: pixels and samples are dropped once encoded,
tokens once they have left the window.
"""

import collections
import dataclasses
import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np

from vljax.data.audio import mel_clips
from vljax.data.stream import Picture, Piece, Sound
from vljax.data.video import MediaError, times_message, uniform_indices
from vljax.generate import long
from vljax.generate.engine import Engine
from vljax.generate.long import POLICIES, WINDOW
from vljax.generate.media import FRAMES, Encoded
from vljax.models.memory import Memory, blank

T = TypeVar("T")
SLACK = 1e-3  # seconds by which time stamps may be off
NAMES = ("uniform", "memory")  # of the policies that a stream can be followed by


@dataclasses.dataclass(frozen=True)
class Pace:
    """How much of a stream is taken: windows of so many seconds, so many frames a second.

    Raises ValueError for values that leave nothing.
    """

    window: float = WINDOW
    fps: float = FRAMES / WINDOW

    def __post_init__(self) -> None:
        for name in ("window", "fps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name):g}, expected more than 0")
        if self.window * self.fps < 1:
            raise ValueError(
                f"fps: got {self.fps:g}, expected at least {1 / self.window:g}: a frame in a "
                f"window of {self.window:g} s"
            )

    @property
    def room(self) -> int:
        """Pieces of a stream that may wait: two windows of pictures, and of sound as it comes."""
        return int(2 * self.window * (self.fps + 50))


class Recent(Generic[T]):
    """(seconds, value) of the last ``room`` arrivals, those not yet encoded apart."""

    def __init__(self, room: int):
        self.waiting: list[tuple[float, T]] = []
        self.kept: collections.deque[tuple[float, np.ndarray]] = collections.deque(maxlen=room)

    def between(self, start: float, end: float) -> tuple[np.ndarray, list[np.ndarray]]:
        """Times [T] and what was made of those in [start, end)."""
        found = [(t, x) for t, x in self.kept if start - SLACK <= t < end - SLACK]
        return np.array([t for t, _ in found]), [x for _, x in found]


class Live:
    """A stream's last window, or with the policy ``memory`` a rolling memory of all of it.

    One thread may call ``take`` while another one calls ``media``.

    Attributes:
      seconds: up to where the stream has been taken.
    """

    def __init__(
        self,
        engine: Engine,
        policy: str = "uniform",
        pace: Pace = Pace(),
        look: bool = True,
        listen: bool = True,
    ):
        if policy not in NAMES:
            raise ValueError(
                f"policy: got {policy}, expected one of {', '.join(NAMES)} for streams"
            )
        self.engine, self.policy, self.pace = engine, POLICIES[policy], pace
        self.look, self.listen = look, listen
        spec = engine.size.audio
        self.clip = float(spec.clip_seconds)
        # The sounds of a window are where the paper's sampling would put them.
        self.hop = max(pace.window - self.clip, self.clip) / spec.clips
        self.sights: Recent[np.ndarray] = Recent(2 * round(pace.fps * pace.window) + FRAMES)
        self.sounds: Recent[np.ndarray] = Recent(2 * spec.clips + round(self.clip / self.hop) + 1)
        self._chunk = min(max(1, round(pace.fps)), FRAMES)
        self._wave = Wave(self.clip, self.hop)
        self._memories: dict[str, Memory] = {}
        self._ends = {"sight": 0.0, "sound": 0.0}
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        return max(self._ends.values())

    def past(self, seconds: float) -> bool:
        """Whether all that was before this moment has come, of each stream there is."""
        ends = [e for e in self._ends.values() if e]
        return bool(ends) and (min(ends) >= seconds or max(ends) > seconds + 1)

    def take(self, piece: Piece) -> None:
        """Takes what comes next, and encodes it when a chunk is full."""
        with self._lock:
            if isinstance(piece, Picture):
                self._ends["sight"] = max(self._ends["sight"], piece.seconds + 1 / self.pace.fps)
                self.sights.waiting.append((piece.seconds, piece.pixels))
            else:
                self._ends["sound"] = max(self._ends["sound"], piece.end)
                for at, wave in self._wave.take(piece):
                    self._hear(at, wave, piece.rate)
            self._encode(self._chunk)

    def media(self, now: float | None = None) -> Encoded:
        """What the model is asked about: the window before ``now``, by default the latest.

        Raises MediaError where nothing has come.
        """
        with self._lock:
            self._encode(1)
            end = self.seconds if now is None else now
            sight, message = self._sight(end)
            sound = self._sound(end)
        if sight is None and sound is None:
            raise MediaError(f"the stream has shown nothing in the {self.pace.window:g} s before")
        return Encoded(sight, sound, message)

    def _hear(self, at: float, wave: np.ndarray, rate: int) -> None:
        spec = dataclasses.replace(self.engine.size.audio, clips=1)
        mel = mel_clips(wave, rate, spec)
        if mel is not None:
            self.sounds.waiting.append((at, mel[0]))

    def _encode(self, least: int) -> None:
        """What waits goes through the towers, if it is ``least`` or more."""
        for name, recent, run in (
            ("sight", self.sights, long.frame_tokens),
            ("sound", self.sounds, long.sound_features),
        ):
            if len(recent.waiting) < least:
                continue
            times, inputs = zip(*recent.waiting, strict=True)
            recent.waiting.clear()
            made = run(self.engine, np.stack(inputs))
            recent.kept.extend(zip(times, made, strict=True))
            if self.policy.fit == "merge":
                self._remember(name, made, np.array(times))

    def _remember(self, name: str, made: np.ndarray, times: np.ndarray) -> None:
        size = self.engine.size
        places = min(self.policy.rows, size.max_frames) if name == "sight" else size.max_clips
        frames = made if name == "sight" else made[:, None]
        memory = self._memories.get(name) or blank(places, *frames.shape[1:])
        self._memories[name] = long.add(memory, frames, times)

    def _sight(self, end: float) -> tuple[np.ndarray | None, str]:
        if self.policy.fit == "merge":
            if "sight" not in self._memories:
                return None, ""
            tokens, times = long.contents(self._memories["sight"])
        else:
            start = max(end - self.pace.window, 0.0)
            times, found = self.sights.between(start, end)
            if not found:
                return None, ""
            picked = uniform_indices(len(found), min(FRAMES, self.engine.size.max_frames))
            tokens, times = np.stack(found)[picked], times[picked] - start
        prompts, _ = long.see(self.engine, POLICIES["uniform"], [tokens], [times])
        return prompts, times_message(times.tolist())

    def _sound(self, end: float) -> np.ndarray | None:
        if self.policy.fit == "merge":
            if "sound" not in self._memories:
                return None
            features = long.contents(self._memories["sound"])[0][:, 0]
        else:
            # A sound that only ends after the window is not of it.
            start = max(end - self.pace.window, 0.0)
            _, found = self.sounds.between(start, end - self.clip + 2 * SLACK)
            if not found:
                return None
            features = np.stack(found[-self.engine.size.max_clips :])
        return long.hear(self.engine, POLICIES["uniform"], [features])


class Wave:
    """Cuts sound that comes in blocks into clips of ``clip`` seconds, one every ``hop`` seconds."""

    def __init__(self, clip: float, hop: float):
        self._clip, self._hop = clip, hop
        self._start, self._next, self._rate = 0.0, 0.0, 0
        self._samples = np.zeros((0, 0), np.float32)

    def take(self, sound: Sound) -> Iterable[tuple[float, np.ndarray]]:
        """(seconds, [channels, n]) of the clips that this block completes."""
        end = self._start + self._samples.shape[1] / max(self._rate, 1)
        same = self._rate == sound.rate and len(self._samples) == len(sound.samples)
        # A block that does not follow on the one before begins anew: something was lost.
        if not same or abs(sound.seconds - end) > 0.1:
            self._rate, self._start = sound.rate, sound.seconds
            self._samples = sound.samples[:, :0]
            self._next = np.ceil((sound.seconds - SLACK) / self._hop) * self._hop
        self._samples = np.concatenate([self._samples, sound.samples], axis=1)
        length = round(self._clip * self._rate)
        made = []
        while (first := round((self._next - self._start) * self._rate)) + length <= (
            self._samples.shape[1]
        ):
            made.append((self._next, self._samples[:, first : first + length]))
            self._next += self._hop
        drop = min(max(first, 0), self._samples.shape[1])
        self._samples = self._samples[:, drop:].copy()
        self._start += drop / self._rate
        return made
