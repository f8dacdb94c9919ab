"""Frames and still images: which frames to take, how to read them, how to make them CLIP input.

Everything is channels-last numpy: a clip is [T, H, W, 3], an image [H, W, 3], uint8 in 0..255 until
`normalise`. Source: Video-LLaMA `processors/video_processor.py` and `blip_processors.py`.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

from vljax.data.examples import MediaFile, StoredFile

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".flv")

# Playlists, scripts and text art are "media" to ffmpeg too, and can pull in other files: name what
# may be opened instead.
_FORMATS = (
    "mov,matroska,webm,gif,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,m4v,h264,hevc,ivf,apng,"
    "wav,mp3,flac,aac,ac3,eac3,aiff,amr,au,caf,w64,opus"
)

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
Size = tuple[int, int]  # height, width in pixels


class MediaError(ValueError):
    """A file cannot be used: one sentence with its name, what was found and what to do."""


@dataclass(frozen=True)
class Clip:
    """Frames taken from one video, in the order they were picked."""

    frames: np.ndarray  # [T, H, W, 3] uint8
    indices: np.ndarray  # [T] position of each frame in the video
    fps: float  # average frames a second of the video
    num_frames: int  # frames in the whole video

    @property
    def duration(self) -> float:
        """Seconds of the whole video."""
        return self.num_frames / self.fps


# Which frames


def uniform_indices(num_frames: int, n: int, literal: bool = False) -> np.ndarray:
    """Positions of min(n, num_frames) evenly spaced frames, the first one being frame 0.

    The original's float arange gives one position too many for some lengths (17 frames, n=7), so it
    is cut to n unless `literal` asks for the original's answer. Raises MediaError for an
    empty video and ValueError for n < 1.
    """
    _check_counts(num_frames, n)
    n = min(n, num_frames)
    indices = np.arange(0, num_frames, num_frames / n).astype(int)
    return indices if literal else indices[:n]


def headtail_indices(
    num_frames: int, n: int, rng: random.Random, literal: bool = False
) -> np.ndarray:
    """Sorted random positions: half of min(n, num_frames) from each half of the video.

    Draws as the original does from Python's global generator after `random.seed`. An odd number of
    frames cannot be halved: that raises MediaError, unless `literal` asks for the original's answer
    (one frame fewer, so none at all from a video of one frame).
    """
    _check_counts(num_frames, n)
    k = min(n, num_frames)
    if k % 2 and not literal:
        raise MediaError(
            f"headtail sampling takes as many frames from each half of a video, got {k} "
            f"(n={n}, video of {num_frames} frames): use an even n and videos at least as long"
        )
    middle = num_frames // 2
    head = sorted(rng.sample(range(middle), k // 2))
    return np.array(head + sorted(rng.sample(range(middle, num_frames), k // 2)), int)


def _check_counts(num_frames: int, n: int) -> None:
    if n < 1:
        raise ValueError(f"number of frames to take: got {n}, expected 1 or more")
    if num_frames < 1:
        raise MediaError(f"video holds {num_frames} frames, expected at least 1: use another file")


def frame_message(indices: np.ndarray, fps: float) -> str:
    """The sentence that tells the LLM when the frames were taken; it ends with a space."""
    return times_message([int(i) / float(fps) for i in indices])


def times_message(seconds: Sequence[float]) -> str:
    """``frame_message`` of the frames' times."""
    told = ", ".join(str(round(s, 1)) for s in seconds)
    return f"The video contains {len(seconds)} frames sampled at {told} seconds. "


# Reading files


def is_image(path: str | Path) -> bool:
    """Whether a name is that of a still image; a gif is a clip."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def read_image(path: str | MediaFile) -> np.ndarray:
    """The image (first frame of anything), upright by its EXIF tag: [H, W, 3] uint8.

    Raises MediaError for a file that is missing, empty or not an image.
    """
    path = _check_file(path)
    try:
        with Image.open(path.open() if isinstance(path, StoredFile) else path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would clip it, not scale it
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(
            f"{path.name} cannot be read as an image ({error}): use a whole jpg, png, webp or bmp"
        ) from error


def open_media(path: str | MediaFile) -> av.container.InputContainer:
    """Opens a local or stored media file with PyAV; use it in a `with`.

    Raises MediaError for a file that is missing, empty or in no audio or video format.
    """
    path = _check_file(path)
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        # An absolute name: ffmpeg would take "a:b.mp4" for a protocol called "a".
        file: Any = path.open() if isinstance(path, StoredFile) else str(path.absolute())
        return av.open(file, options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise MediaError(
            f"{path.name} is not a readable video or sound file ({error.strerror}): use a whole "
            "mp4, mov, webm, mkv, gif, wav, mp3, flac, m4a or ogg"
        ) from error


def _check_file(path: str | MediaFile) -> MediaFile:
    path = Path(path) if isinstance(path, str) else path
    if isinstance(path, Path) and not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise MediaError(f"{path}: got {found}, expected a media file: check the path")
    size = len(path.data) if isinstance(path, StoredFile) else path.stat().st_size
    if size == 0:
        raise MediaError(f"{path.name} is empty (0 bytes): fetch or export it again")
    return path


def frame_rate(path: str | MediaFile) -> float:
    """Frames a second of a video, as ``read_clip`` tells it. Raises MediaError."""
    path = Path(path) if isinstance(path, str) else path
    with open_media(path) as container:
        return _rate(_video_stream(container, path))


class Listener(Protocol):
    """Takes another stream of a file, in the pass that counts the packets of the picture."""

    def choose(self, container: av.container.InputContainer) -> av.stream.Stream | None: ...
    def take(self, packet: av.Packet) -> None: ...


def read_clip(
    path: str | MediaFile,
    pick: Callable[[int], np.ndarray],
    size: Size,
    listener: Listener | None = None,
) -> Clip:
    """Reads the frames that `pick(num_frames)` names, squashed to `size` without keeping aspect.

    The number of frames is the number of packets, since headers lie; where fewer decode, `pick` is
    asked again with the number that did. Frames are in display order, turned upright by the
    rotation tag and scaled by ffmpeg's bicubic. A `listener` gets all of the stream it chooses.

    Raises MediaError for a file that is missing, empty, no video, or without a frame.
    """
    path = Path(path) if isinstance(path, str) else path
    with open_media(path) as container:
        stream = _video_stream(container, path)
        index = _scan(container, stream, listener)
        num_frames = len(index.pts)
        if num_frames == 0:
            raise _no_frames(path)
        indices = _picked(path, pick, num_frames)
        frames = _read_groups(container, stream, index, indices, size) if index.quick else {}
    if len(frames) < len(set(indices)):
        frames, decoded = _read_in_order(path, indices, size)
        if len(frames) < len(set(indices)):
            if decoded == 0:
                raise _no_frames(path)
            num_frames, indices = decoded, _picked(path, pick, decoded)
            frames, _ = _read_in_order(path, indices, size)
    stacked = np.stack([frames[i] for i in indices])
    return Clip(stacked, np.array(indices), index.fps, num_frames)


def _picked(path: MediaFile, pick: Callable[[int], np.ndarray], num_frames: int) -> list[int]:
    indices = [int(i) for i in pick(num_frames)]
    if not indices or min(indices) < 0 or max(indices) >= num_frames:
        raise MediaError(
            f"{path.name}: frames {indices} were picked, expected at least one position in "
            f"0..{num_frames - 1}: ask for frames that the video has"
        )
    return indices


def _no_frames(path: MediaFile) -> MediaError:
    return MediaError(f"{path.name} has a video stream with no readable frame: use another file")


@dataclass(frozen=True)
class _Index:
    """What one pass over the packets tells without decoding."""

    pts: list[int]  # display times in order, in the stream's time base
    keys: list[int]  # the pts of keyframes, in order
    fps: float
    quick: bool  # frames may be found by their display time, from the keyframe before


def _scan(
    container: av.container.InputContainer, stream: av.VideoStream, listener: Listener | None
) -> _Index:
    heard = listener.choose(container) if listener else None
    packets = []
    for packet in demux(container, stream, *filter(None, [heard])):
        if packet.stream is not stream and listener:
            listener.take(packet)
        elif packet.size and not packet.is_discard:
            packets.append((packet.pts, packet.is_keyframe))
    fps = _rate(stream)
    times = {pts for pts, _ in packets}
    stamped = len(times) == len(packets) and None not in times
    keys = sorted(pts for pts, key in packets if key) if stamped else []
    pts = sorted(times) if stamped else [0] * len(packets)
    # Other codecs have packets without a frame, or keyframes that do not stand alone.
    return _Index(pts, keys, fps, bool(keys) and stream.codec_context.name == "h264")


def _rate(stream: av.VideoStream) -> float:
    # 25 is ffmpeg's own assumption where a file has no rate.
    return float(stream.average_rate or stream.guessed_rate or 25)


def _read_groups(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    index: _Index,
    indices: list[int],
    size: Size,
) -> dict:
    """Decodes only the groups of pictures that hold a wanted frame, each up to its last one.

    In a group, frames that no other frame refers to are skipped unless wanted. The pixels are those
    of a plain decode; a frame that does not turn up is left out of the answer.
    """
    wanted = {index.pts[i]: i for i in indices}
    frames, to_rgb = {}, Converter(size)
    for _, group in groupby(sorted(wanted), key=lambda pts: bisect_right(index.keys, pts)):
        unsent = set(times := list(group))
        try:
            container.seek(times[0], stream=stream)
        except av.FFmpegError:
            break
        for frame in _decode_until_sent(container, stream, unsent):
            if frame.pts in wanted:
                frames[wanted[frame.pts]] = to_rgb(frame)
    return frames


def _decode_until_sent(
    container: av.container.InputContainer, stream: av.VideoStream, unsent: set[int]
) -> Iterator[av.VideoFrame]:
    """Frames from here on, until those of ``unsent`` times and what they refer to are decoded."""
    for packet in demux(container, stream):
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in unsent else "NONREF"
        yield from decode(packet)
        unsent.discard(packet.pts)
        if not unsent:
            # The decoder holds some back to put them in order: ask for these, not for later ones.
            end = av.Packet()
            end.stream = stream
            yield from decode(end)
            return


def _read_in_order(path: MediaFile, indices: list[int], size: Size) -> tuple[dict, int]:
    """Plain decode up to the last wanted frame: frames by position, and how many were decoded."""
    frames, decoded, to_rgb = {}, 0, Converter(size)
    with open_media(path) as container:
        stream = _video_stream(container, path)
        for packet in demux(container, stream):
            for frame in decode(packet):
                if decoded in indices:
                    frames[decoded] = to_rgb(frame)
                decoded += 1
            if decoded > max(indices):
                break
    return frames, decoded


def has_frames(path: str | MediaFile) -> bool:
    """Whether there is a video stream to decode. Raises MediaError as ``open_media``."""
    with open_media(path) as container:
        return any(map(_is_decodable, container.streams.video))


def _is_decodable(stream: av.VideoStream) -> bool:
    # The cover of a song is a video stream of one picture; an unknown codec has no context.
    cover = stream.disposition & av.stream.Disposition.attached_pic
    return bool(stream.codec_context and not cover)


def _video_stream(container: av.container.InputContainer, path: MediaFile) -> av.VideoStream:
    for stream in filter(_is_decodable, container.streams.video):
        # Clips are read in parallel processes: threads inside each only get in the way.
        stream.thread_type = "NONE"
        return stream
    raise MediaError(f"{path.name} has no video stream to decode: use a file with a picture")


def demux(container: av.container.InputContainer, *streams: av.stream.Stream) -> Iterator:
    """Packets of some streams; a file cut short ends where it can no longer be read."""
    try:
        yield from container.demux(*streams)
    except av.FFmpegError:
        return


def decode(packet: av.Packet) -> list:
    """Frames that a packet completes; a damaged packet costs its own frames only."""
    try:
        return packet.decode()
    except av.FFmpegError:
        return []


class Converter:
    """Frames to upright [H, W, 3] of one size; ffmpeg's tables for it are built once a clip."""

    def __init__(self, size: Size):
        self._size, self._scaler = size, VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4  # quarter turns, counter-clockwise
        height, width = self._size if turns % 2 == 0 else self._size[::-1]
        options: Any = {"format": "rgb24", "interpolation": "BICUBIC", "threads": 1}
        frame = self._scaler.reformat(frame, width, height, **options)
        return np.rot90(frame.to_ndarray(), turns)


# Making CLIP input


def normalise(frames: np.ndarray) -> np.ndarray:
    """uint8 pixels [..., 3] to float32 with CLIP's mean and standard deviation."""
    return (frames.astype(np.float32) / np.float32(255) - CLIP_MEAN) / CLIP_STD


def eval_frames(frames: np.ndarray) -> np.ndarray:
    """Pixels 0..255 of any dtype, truncated to whole numbers, then `normalise`; no crop."""
    return normalise(frames.astype(np.uint8))


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Antialiased bicubic (Pillow) to `size` without keeping aspect: uint8 in, uint8 out."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def random_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A random box of `scale` of the area and `ratio` width/height (torchvision RandomResizedCrop).

    Ten tries, then the largest centred box whose ratio is allowed.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*np.log(ratio)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return int(top), int(left), h, w
    h = max(1, min(height, round(width / ratio[0])))
    w = max(1, min(width, round(height * ratio[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def crop_resize_clip(frames: np.ndarray, box: Box, size: Size, wrap: bool = False) -> np.ndarray:
    """Crops [T, H, W, C] uint8 to `box` and resizes it to `size` as torch's bicubic, no antialias.

    Bicubic overshoots 0..255 beside hard edges: values are clamped, or with `wrap` taken modulo 256
    like the original's bare cast, which speckles such edges.
    """
    resized = crop_resize_float(frames, box, size)
    if wrap:
        return resized.astype(np.int64).astype(np.uint8)
    return np.clip(resized, 0, 255).astype(np.uint8)


def crop_resize_float(frames: np.ndarray, box: Box, size: Size) -> np.ndarray:
    """What `crop_resize_clip` makes whole numbers of: float32, beside hard edges out of 0..255."""
    return _bicubic(_crop(frames, box), size)


def crop_resize_image(image: np.ndarray, box: Box, size: Size) -> np.ndarray:
    """Crops [H, W, 3] uint8 to `box` and resizes it with `resize_image`."""
    return resize_image(_crop(image, box), size)


def _crop(frames: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    return frames[..., top : top + height, left : left + width, :]


def _bicubic(frames: np.ndarray, size: Size) -> np.ndarray:
    """torch interpolate(mode="bicubic", align_corners=False) of [..., H, W, C], float32."""
    out = frames.astype(np.float32)
    # Width first and taps in order, as torch does: a truncating cast shows every rounding.
    for axis, length in ((out.ndim - 2, size[1]), (out.ndim - 3, size[0])):
        taps = _bicubic_taps(out.shape[axis], length)
        shape = [1] * out.ndim
        shape[axis] = length
        out = sum(np.take(out, at, axis) * weight.reshape(shape) for at, weight in taps)
    return out


def _bicubic_taps(length: int, target: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Four (source position, weight) pairs of [target]; cubic convolution with a = -0.75."""
    a, one = np.float32(-0.75), np.float32(1)
    # torch multiplies and adds in one rounding: float64 then float32 comes to the same.
    at = np.float64(np.float32(length / target)) * (np.arange(target) + 0.5) - 0.5
    at = at.astype(np.float32)
    first = np.floor(at)
    t = at - first

    def near(x: np.ndarray) -> np.ndarray:  # |x| <= 1
        return ((a + 2) * x - (a + 3)) * x * x + one

    def far(x: np.ndarray) -> np.ndarray:  # 1 < |x| < 2
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    weights = far(t + one), near(t), near(one - t), far(2 - t)
    first = first.astype(int)
    return [(np.clip(first + k - 1, 0, length - 1), w) for k, w in enumerate(weights)]
