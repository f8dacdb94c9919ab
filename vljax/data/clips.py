"""What is read of one record's file: frames as the model takes them, and the sound's mel clips."""

import dataclasses
import functools
import random
from typing import Literal

import numpy as np

from vljax.data import video
from vljax.data.audio import AudioSpec, Track, mel_clips
from vljax.data.examples import Record


@dataclasses.dataclass(frozen=True)
class FrameSpec:
    """Which frames of a clip, how large in pixels, and whether crops are random."""

    count: int = 8
    size: int = 224
    policy: Literal["uniform", "headtail"] = "uniform"
    augment: bool = True


@dataclasses.dataclass(frozen=True)
class Media:
    """One record's media.

    Attributes:
      frames: uint8 [T, size, size, 3], T = 1 of an image.
      message: the sentence that tells the frames' times; "" of an image.
      mel: float32 [S, M, F]; None where it is not asked for or there is no sound.
    """

    frames: np.ndarray
    message: str = ""
    mel: np.ndarray | None = None


def load_media(
    record: Record, spec: FrameSpec, rng: np.random.Generator, sound: AudioSpec | None = None
) -> Media:
    """Raises MediaError. A clip without a track, or with less than 25 ms of one, has no mel."""
    if sound is None or record.kind == "image":
        return Media(*load_frames(record, spec, rng))
    track = Track()
    frames, message = load_frames(record, spec, rng, track)
    heard = track.whole()
    return Media(frames, message, None if heard is None else mel_clips(*heard, sound))


def load_frames(
    record: Record, spec: FrameSpec, rng: np.random.Generator, track: Track | None = None
) -> tuple[np.ndarray, str]:
    """Frames [T, size, size, 3] uint8 and the sentence that tells their times (clips only).

    A clip's sound goes to ``track`` on the way.
    """
    size = (spec.size, spec.size)
    if record.kind == "image":
        image = video.read_image(record.path)
        if spec.augment:
            box = video.random_crop_box(image.shape[0], image.shape[1], rng)
            return video.crop_resize_image(image, box, size)[None], ""
        return video.resize_image(image, size)[None], ""
    pick = functools.partial(video.uniform_indices, n=spec.count)
    if spec.policy == "headtail":
        draw = random.Random(int(rng.integers(2**31)))
        pick = functools.partial(video.headtail_indices, n=spec.count, rng=draw)
    clip = video.read_clip(record.path, pick, size, track)
    message = video.frame_message(clip.indices, clip.fps)
    if spec.augment:
        box = video.random_crop_box(spec.size, spec.size, rng)
        return video.crop_resize_clip(clip.frames, box, size), message
    return clip.frames, message
