"""The contract between data and models: one record, one batch.

A batch is a dict of arrays whose first axis is the example (which of them depends on the source):

===========  ==================  ==========================================================
frames       uint8 [B,T,H,W,3]   RGB pixels; normalised on the device
frame_mask   bool [B,T]          which frames are there; a shorter clip is padded at the end
mel          float32 [B,S,M,F]   mel spectrograms of S clips of sound (M bins, F frames)
tokens       int32 [B,L]         ids; a placeholder id (>= the vocabulary) for every media vector
mask         bool [B,L]          which tokens are there; padding is at the end
labels       int32 [B,L]         what is taught; -100 is not
sound        bool [B]            beside mel: whether there is sound; without it mel is 0
missing      bool [B]            rows whose media could not be read: one black frame, no labels
===========  ==================  ==========================================================

Where ``vljax encode`` has run, what the frozen towers made of the frames stands in their place:
frame_tokens [B,T,Q,D] or sight_features [B,T,D] or both, float32.
"""

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal


class StoredFile:
    """A media file in a records file: bytes that are read when they are asked for, and a path.

    It stands for a path wherever media are read. Sent to another process, it takes its bytes along.
    """

    def __init__(self, path: Path, read: Callable[[], bytes]):
        self.path, self._read = path, read

    @functools.cached_property
    def data(self) -> bytes:
        return self._read()

    def __reduce__(self) -> tuple[Any, ...]:
        return _in_memory, (self.path, self._read())  # not kept here as well

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def suffix(self) -> str:
        return self.path.suffix

    def read_bytes(self) -> bytes:
        return self.data

    def open(self) -> io.BytesIO:
        """The bytes as a file, with a name: ffmpeg goes by it where the bytes leave a doubt."""
        file = io.BytesIO(self.data)
        file.name = self.name
        return file


def _in_memory(path: Path, data: bytes) -> StoredFile:
    return StoredFile(path, lambda: data)


MediaFile = Path | StoredFile


@dataclasses.dataclass(frozen=True)
class Record:
    """One annotated clip or image, as a reader of a family yields it.

    Attributes:
      id: as the annotation file names it, for messages.
      path: the media file, or its bytes where the records hold them.
      kind: a clip of several frames, or one image.
      caption: what is taught in captioning; None in a conversation.
      turns: (role, text) with role "human" or "gpt" and ``<image>`` where the media stand;
        ``<other>`` where a distractor stands, another record's media that nothing asks about.
      tags: what stands around the media.
      frame_message: whether the frames' times are told after the first ``<image>``.
    """

    id: str
    path: MediaFile
    kind: Literal["video", "image"]
    caption: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, str] = ("<Image>", "</Image>")
    frame_message: bool = False


class AnnotationError(ValueError):
    """An annotation file that is not what its family says; names file, place and what to do."""
