"""What a decoding process makes of an upload; it trusts neither a file's name nor its header.

Runs in ``vljax.data.decode_worker``'s processes: imports neither JAX nor a web server.
"""

import dataclasses
import functools
import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from vljax.data import video
from vljax.data.audio import AudioSpec, Track, mel_clips
from vljax.data.examples import StoredFile
from vljax.data.video import MediaError

IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")
OTHERS = {
    b"PK": "a zip archive",
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"%PDF": "a PDF",
    b"#!": "a script",
    b"#EXTM3U": "a playlist",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"<": "an HTML or XML page",
}
# Their headers tell a duration that is no guess.
EXACT = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"}


class TooLarge(MediaError):
    """A file that is beyond a limit: one sentence."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """How many frames of which size are taken, how sound is heard, and the limits of a file."""

    frames: int
    size: int
    sound: AudioSpec
    seconds: float
    pixels: int


@dataclasses.dataclass(frozen=True)
class Upload:
    """One file as the model takes it, before it is decided what of it is used.

    Attributes:
      frames: uint8 [T, size, size, 3] or None. mel: float32 [S, bins, frames] or None.
      message: see ``frame_message``. at: seconds at which frames were taken.
      kind: "image", "video" or "audio". seconds: of the whole; 0 of an image.
    """

    kind: str
    frames: np.ndarray | None = None
    mel: np.ndarray | None = None
    message: str = ""
    at: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.frames, self.mel) if x is not None)


def read_upload(name: str, data: bytes, spec: Spec) -> Upload:
    """Raises MediaError for what can't be read, TooLarge for what is beyond a limit."""
    require_media(name, data)
    file = StoredFile(Path(name), lambda: data)
    if data.startswith(IMAGES) or data[:4] + data[8:12] == b"RIFFWEBP":
        require_pixels(name, data, spec.pixels)
        image = video.resize_image(video.read_image(file), (spec.size, spec.size))
        return Upload("image", image[None])
    seconds, picture = measure(file, spec)
    track = Bounded(name, spec.seconds)
    if not picture:
        with video.open_media(file) as container:
            stream = track.choose(container)
            for packet in video.demux(container, stream) if stream else ():
                track.take(packet)
        mel = heard(track, spec)
        if mel is None:
            raise MediaError(
                f"{name} has no picture and no sound of at least 25 ms: use another file"
            )
        return Upload("audio", mel=mel, seconds=seconds)
    pick = functools.partial(video.uniform_indices, n=spec.frames)
    clip = video.read_clip(file, pick, (spec.size, spec.size), track)
    require_seconds(name, clip.duration, spec.seconds)
    at = tuple(round(float(i / clip.fps), 2) for i in clip.indices)
    message = video.frame_message(clip.indices, clip.fps)
    return Upload("video", clip.frames, heard(track, spec), message, at, seconds or clip.duration)


def require_media(name: str, data: bytes) -> None:
    """Raises MediaError for what is empty or begins as something else does."""
    if not data:
        raise MediaError(f"{name} is empty (0 bytes): send a clip, an image or a sound")
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, what in OTHERS.items():
        if start.startswith(magic):
            raise MediaError(f"{name} is {what}, expected a clip, an image or a sound")


def require_pixels(name: str, data: bytes, most: int) -> None:
    """By the image's header, before anything of it is unpacked."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{name} is too large an image ({error}): send a smaller one") from error
    except (OSError, SyntaxError, ValueError):
        return  # told better by who reads it
    _require_area(name, width, height, most)


def _require_area(name: str, width: int, height: int, most: int) -> None:
    if width * height > most:
        raise TooLarge(
            f"{name} has {width} x {height} pixels, expected at most {most:,} in all: "
            "send a smaller one"
        )


def require_seconds(name: str, seconds: float, most: float) -> None:
    if seconds > most:
        raise TooLarge(f"{name} lasts {seconds:,.0f} s, expected at most {most:g} s: cut it")


def measure(file: StoredFile, spec: Spec) -> tuple[float, bool]:
    """Seconds, and whether there is a picture: by the header, and by every packet's time.

    Raises TooLarge, and MediaError for a file that ends well before its header says.
    """
    with video.open_media(file) as container:
        told = (container.duration or 0) / av.time_base
        require_seconds(file.name, max(told, movie_seconds(file.data)), spec.seconds)
        pictures = list(_pictures(container))
        for stream in pictures:
            _require_area(file.name, stream.width, stream.height, spec.pixels)
        streams = [s for s in container.streams if s.type in ("video", "audio")]
        held = 0.0
        for packet in video.demux(container, *streams) if streams else ():
            if packet.pts is not None and packet.time_base:
                start = packet.stream.start_time or 0
                end = packet.pts + (packet.duration or 0) - min(start, packet.pts)
                held = max(held, float(end * packet.time_base))
        if container.format.name in EXACT and told - held > max(0.5, 0.1 * told):
            raise MediaError(
                f"{file.name} is cut short: it tells of {told:.1f} s and holds {held:.1f} s; "
                "fetch or export it again"
            )
    require_seconds(file.name, held, spec.seconds)
    return held, bool(pictures)


def movie_seconds(data: bytes) -> float:
    """What an mp4's header ("mvhd", ISO 14496-12, 8.2.2) says; 0 where it says nothing.

    ffmpeg believes the tables of samples, and does not tell.
    """
    at = 0
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"moov":
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:  # the size is too large for its field
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        at += max(size, 8)
    start = data.find(b"mvhd", at) + 4
    long = data[start : start + 1] == b"\1"
    scale, told = (start + 20, start + 24) if long else (start + 12, start + 16)
    end = told + (8 if long else 4)
    if at >= len(data) or start < 4 or end > len(data):
        return 0.0
    units, unknown = data[told:end], b"\xff" * (end - told)
    rate = int.from_bytes(data[scale : scale + 4], "big")
    return int.from_bytes(units, "big") / rate if rate and units != unknown else 0.0


def _pictures(container: av.container.InputContainer) -> Iterator[av.VideoStream]:
    for stream in container.streams.video:
        if stream.codec_context and not stream.disposition & av.stream.Disposition.attached_pic:
            yield stream


def heard(track: Track, spec: Spec) -> np.ndarray | None:
    whole = track.whole()
    return None if whole is None else mel_clips(*whole, spec.sound)


class Bounded(Track):
    """A track that takes no more than a limit, whatever its packets' times said."""

    def __init__(self, name: str, seconds: float):
        super().__init__()
        self._name, self._most, self._taken = name, seconds, 0.0

    def take(self, packet: av.Packet) -> None:
        before = len(self._chunks)
        super().take(packet)
        rate = self._format[0] if self._format else 1
        self._taken += sum(chunk.shape[1] for chunk in self._chunks[before:]) / rate
        require_seconds(self._name, self._taken, self._most + 1)
