"""What the model is given of a file: frames and mel spectrograms, and a picture of them."""

import dataclasses
import functools
import hashlib
import math
from pathlib import Path

import numpy as np

from vljax.data import video
from vljax.data.audio import mel_clips, read_audio
from vljax.data.video import MediaError
from vljax.models.sizes import VideoLlamaSize

FRAMES = 8  # sampled from a clip, uniformly, as in training


@dataclasses.dataclass(frozen=True)
class Media:
    """One clip or image as the towers take it.

    Attributes:
      frames: uint8 [T, size, size, 3], T = 1 for an image, or None without a picture.
      mel: float32 [S, bins, frames], or None without sound.
      message: at which seconds the frames were sampled; "" for an image.
    """

    frames: np.ndarray | None
    mel: np.ndarray | None
    message: str = ""

    def digest(self) -> bytes:
        """Tells apart what the towers are given."""
        return _digest(self.frames, self.mel)

    @property
    def sees(self) -> bool:
        return self.frames is not None

    @property
    def hears(self) -> bool:
        return self.mel is not None

    @property
    def still(self) -> bool:
        return self.frames is not None and len(self.frames) == 1 and not self.message


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Media that the towers have read already, as soft prompts.

    Attributes:
      sight: [P, D], or None without a picture. sound: [S, D], or None without sound.
      message: as ``Media``'s.
    """

    sight: np.ndarray | None
    sound: np.ndarray | None
    message: str = ""
    still: bool = False

    @property
    def sees(self) -> bool:
        return self.sight is not None

    @property
    def hears(self) -> bool:
        return self.sound is not None

    def digest(self) -> bytes:
        """Tells apart what the towers made."""
        return _digest(self.sight, self.sound)

    @property
    def prompts(self) -> np.ndarray:
        """[S + P, D], in the order of their placeholders: sound's first."""
        return np.concatenate([x for x in (self.sound, self.sight) if x is not None])


Span = tuple[float, float]  # seconds of a clip, from where to where


def read_media(
    path: str | Path,
    size: VideoLlamaSize,
    look: bool = True,
    listen: bool = True,
    span: Span | None = None,
) -> Media:
    """Reads clips (mp4, mov, webm, mkv, gif, ...), images (jpg, png, ...) and plain sound files.

    Of a clip with a ``span``, frames and sound are those of a clip that was cut so. Raises
    MediaError when the file is missing or is not what it says, or when nothing is left of it (a
    clip without a track, not looked at; a span beyond its end).
    """
    shape = (size.vit.image, size.vit.image)
    frames, message, mel = None, "", None
    image = video.is_image(path)
    if look and image:
        frames = video.resize_image(video.read_image(path), shape)[None]
    elif look:
        first = 0 if span is None else math.ceil(span[0] * video.frame_rate(path))
        pick = functools.partial(_pick, path=path, n=min(FRAMES, size.max_frames), span=span)
        clip = video.read_clip(path, pick, shape)
        frames, message = clip.frames, video.frame_message(clip.indices - first, clip.fps)
    if listen and not image:
        track = read_audio(path)
        if track and span:
            track = track[0][:, slice(*(round(s * track[1]) for s in span))], track[1]
        mel = None if track is None else mel_clips(*track, size.audio)
    if frames is None and mel is None:
        raise MediaError(
            f"{path}: got no picture to look at and no sound of at least 25 ms; leave both "
            "switched on, or take another file"
        )
    return Media(frames, mel, message)


def _pick(num_frames: int, path: str | Path, n: int, span: Span | None) -> np.ndarray:
    """Evenly spaced frames, of those that are shown within the span."""
    if span is None:
        return video.uniform_indices(num_frames, n)
    fps = video.frame_rate(path)
    first, end = (min(math.ceil(s * fps), num_frames) for s in span)
    if first >= end:
        raise MediaError(
            f"{path}: has no frame from {span[0]:g} to {span[1]:g} s, its {num_frames} frames last "
            f"{num_frames / fps:.1f} s; mend start and end"
        )
    return first + video.uniform_indices(end - first, n)


def has_picture(path: str | Path) -> bool:
    """Whether a file is an image or a clip, and not sound alone (a song's cover is no picture)."""
    return video.is_image(path) or video.has_frames(path)


def read_pair(
    look: Path | None, listen: Path | None, size: VideoLlamaSize, span: Span | None = None
) -> Media | None:
    """One file's picture and another's sound, or one file's both. Raises MediaError."""
    if look is None and listen is None:
        return None
    if look is None or listen is None or look == listen:
        path = look or listen
        assert path is not None
        return read_media(path, size, look is not None, listen is not None, span)
    sound = read_media(listen, size, False, True, span)
    return dataclasses.replace(read_media(look, size, True, False, span), mel=sound.mel)


def draw(media: Media, path: str | Path, upscale: int = 4) -> None:
    """Writes a PNG of the frames, left to right, above the mel spectrograms of the sound's clips.

    Frequencies grow upwards, time to the right; brighter is louder.
    """
    from PIL import Image

    from vljax.data.preview import heat

    rows = []
    if media.frames is not None:
        upscale = max(1, min(upscale, 1792 // (len(media.frames) * media.frames.shape[2])))
        strip = np.concatenate([_framed(f) for f in np.repeat(media.frames, upscale, 1)], axis=1)
        strip = np.repeat(strip, upscale, 1) if upscale > 1 else strip
        rows.append(strip)
    if media.mel is not None:
        width = rows[0].shape[1] // len(media.mel) if rows else 224
        clips = [Image.fromarray(c).resize((width - 4, 128)) for c in heat(media.mel)]
        rows.append(np.concatenate([_framed(np.asarray(c)) for c in clips], axis=1))
    width = max(r.shape[1] for r in rows)
    padded = [np.pad(r, ((2, 2), (0, width - r.shape[1]), (0, 0))) for r in rows]
    Image.fromarray(np.concatenate(padded)).save(path)


def _digest(*arrays: np.ndarray | None) -> bytes:
    made = hashlib.sha256()
    for x in arrays:
        made.update(b"-" if x is None else repr((x.shape, x.dtype)).encode())
        made.update(b"" if x is None else x.tobytes())
    return made.digest()


def _framed(image: np.ndarray) -> np.ndarray:
    """Two dark pixels on the left and the right."""
    return np.pad(image, ((0, 0), (2, 2), (0, 0)))
