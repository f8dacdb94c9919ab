"""A stream as it comes: pictures at a chosen rate and blocks of sound, through a bounded ring."""

import collections
import dataclasses
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np

from vljax.data import video
from vljax.data.audio import to_float
from vljax.data.video import MediaError, Size

# What a URL may be, and lead to: not to files of this machine.
_PROTOCOLS = "http,https,tcp,tls,udp,rtp,rtsp,rtmp,rtmps,srt,hls,crypto,pipe"
# What ffmpeg reads cameras, microphones and screens with, by system; lavfi makes test pictures.
_DEVICES = ("v4l2", "alsa", "x11grab", "avfoundation", "dshow", "gdigrab", "lavfi")
SILENT_SECONDS = 10.0  # after so many without data a stream counts as broken
JUMP_SECONDS = 10.0  # a clock that leaps further, or back by a second, has started anew
EARLY = 1e-3  # seconds that a picture may come before its time


@dataclasses.dataclass(frozen=True)
class Picture:
    """pixels: uint8 [H, W, 3], shown ``seconds`` after the stream's beginning."""

    seconds: float
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sound:
    """samples: float32 [channels, n] at ``rate`` Hz, from ``seconds`` on."""

    seconds: float
    samples: np.ndarray
    rate: int

    @property
    def end(self) -> float:
        return self.seconds + self.samples.shape[1] / self.rate


Piece = Picture | Sound


@dataclasses.dataclass(frozen=True)
class Source:
    """A file, a device, a named pipe, "-" for what is piped in, or a URL.

    A device is /dev/video0, or another one of ffmpeg's: "avfoundation:0:0", "dshow:video=Camera".

    Attributes:
      fps: pictures a second that are wanted of it; size: theirs, (height, width) in pixels.
      look, listen: which of its streams are.
    """

    name: str
    size: Size
    fps: float
    look: bool = True
    listen: bool = True

    @property
    def waits(self) -> bool:
        """Whether it can be read slower than it goes: only a file can."""
        return Path(self.name).is_file()

    def pieces(self) -> Iterator[Piece]:
        """What comes, in the order of arrival. Raises MediaError where it breaks off."""
        with self._open() as container:
            yield from self._read(container)

    def _open(self) -> av.container.InputContainer:
        special = _is_special(Path(self.name))
        device, name = _device(self.name)
        if not (device or special or "://" in self.name or self.name == "-"):
            return video.open_media(Path(self.name))
        options = {} if device or special else {"protocol_whitelist": _PROTOCOLS}
        try:
            return av.open(
                "pipe:0" if name == "-" else name,
                format=device or None,
                options=options,
                timeout=SILENT_SECONDS,
                metadata_errors="replace",
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(
                f"{self.name} can't be opened as a stream ({_reason(error)}): expected a file, a "
                "device such as /dev/video0, a pipe, or a URL that ffmpeg reads"
            ) from error

    def _read(self, container: av.container.InputContainer) -> Iterator[Piece]:
        pictures = next(iter(container.streams.video), None) if self.look else None
        sounds = next((s for s in container.streams.audio if s.codec_context), None)
        sounds = sounds if self.listen else None
        chosen = [s for s in (pictures, sounds) if s is not None]
        if not chosen:
            raise MediaError(f"{self.name} has no picture and no sound that is wanted of it")
        clock, sampler = Clock(), Sampler(self.fps)
        shrink = video.Converter(self.size)
        for packet in self._packets(container, chosen):
            for frame in video.decode(packet):
                seconds = clock(packet.stream.index, frame)
                if isinstance(frame, av.AudioFrame):
                    yield Sound(seconds, to_float(frame), frame.sample_rate)
                elif sampler.wants(seconds):
                    yield Picture(seconds, shrink(frame))

    def _packets(
        self, container: av.container.InputContainer, streams: Sequence[av.stream.Stream]
    ) -> Iterator[av.Packet]:
        try:
            yield from container.demux(*streams)
        except av.FFmpegError as error:
            raise MediaError(f"{self.name} broke off ({_reason(error)})") from error


def _device(name: str) -> tuple[str, str]:
    """A device's format and what that calls it; "" and the name itself of all else."""
    if name.startswith("/dev/video"):
        return "v4l2", name
    format, colon, rest = name.partition(":")
    return (format, rest) if colon and format in _DEVICES else ("", name)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a named pipe."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, av.ExitError):
        return f"no data for {SILENT_SECONDS:g} s"
    return str(getattr(error, "strerror", None) or error)


class Clock:
    """Seconds since a stream's beginning, whatever its time stamps say."""

    def __init__(self) -> None:
        self._begin: float | None = None
        self._shifts: dict[int, float] = {}
        self._ends: dict[int, float] = {}

    def __call__(self, stream: int, frame: av.VideoFrame | av.AudioFrame) -> float:
        end = self._ends.get(stream, 0.0)
        stamp = frame.time
        if stamp is None:
            seconds = end
        else:
            self._begin = stamp if self._begin is None else self._begin
            seconds = stamp - self._begin + self._shifts.get(stream, 0.0)
            if not end - 1 <= seconds <= end + JUMP_SECONDS:
                self._shifts[stream] = self._shifts.get(stream, 0.0) + end - seconds
                seconds = end
        seconds = max(seconds, 0.0)
        self._ends[stream] = max(end, seconds + _length(frame))
        return seconds


def _length(frame: av.VideoFrame | av.AudioFrame) -> float:
    if isinstance(frame, av.AudioFrame):
        return frame.samples / frame.sample_rate
    base = frame.time_base or 0
    return float(frame.duration * base) or 0.04


class Sampler:
    """Chooses pictures at 0, 1 / fps, 2 / fps ... seconds: the first one at or after each."""

    def __init__(self, fps: float):
        self._fps, self._next = fps, 0

    def wants(self, seconds: float) -> bool:
        tick = int((seconds + EARLY) * self._fps)
        if tick < self._next:
            return False
        self._next = tick + 1
        return True


class Ring:
    """A source that a thread reads, ahead of who takes from it by ``room`` pieces at most.

    Where nobody takes them in time the oldest pieces are lost. A file goes at ``speed`` times its
    own pace, or with 0 as fast as it is taken, and then loses nothing.

    Attributes:
      dropped: pictures that were lost; missed: seconds of sound that were.
      ended: "" while more may come, then a sentence.
    """

    def __init__(self, source: Source, room: int, speed: float = 1.0):
        self.dropped, self.missed, self.ended = 0, 0.0, ""
        self._broken = False
        self._source, self._room, self._speed = source, room, speed
        self._pieces: collections.deque[Piece] = collections.deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._fill, name="stream", daemon=True)

    def __enter__(self) -> "Ring":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Piece]:
        """Pieces until the end. Raises MediaError where nothing came before it."""
        some = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self.ended or self._stopped)
                if not self._pieces:
                    break
                piece = self._pieces.popleft()
                self._changed.notify_all()
            some = True
            yield piece
        if self._broken and not some:
            raise MediaError(self.ended)

    def _fill(self) -> None:
        last, told = 0.0, ""
        try:
            began = time.monotonic()
            for piece in self._source.pieces():
                last = max(last, piece.seconds)
                if not self._put(piece, began):
                    return
            told = f"{self._source.name}: the stream ended after {last:.0f} s"
        except MediaError as error:
            self._broken = True
            told = f"{error}; it was followed for {last:.0f} s" if last else str(error)
        except Exception as error:  # else who takes would wait for ever
            self._broken = True
            told = f"{self._source.name}: reading failed after {last:.0f} s ({error})"
        finally:
            with self._changed:
                self.ended = told
                self._changed.notify_all()

    def _put(self, piece: Piece, began: float) -> bool:
        """False when nobody takes any more."""
        waits = self._source.waits
        with self._changed:
            if waits and self._speed:
                due = began + piece.seconds / self._speed
                self._changed.wait_for(lambda: self._stopped, max(0.0, due - time.monotonic()))
            elif waits:
                self._changed.wait_for(lambda: self._stopped or len(self._pieces) < self._room)
            if len(self._pieces) >= self._room:
                self._lose(self._pieces.popleft())
            self._pieces.append(piece)
            self._changed.notify_all()
            return not self._stopped

    def _lose(self, piece: Piece) -> None:
        if isinstance(piece, Picture):
            self.dropped += 1
        else:
            self.missed += piece.end - piece.seconds
