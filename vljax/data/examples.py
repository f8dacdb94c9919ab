"""The contract between data and models: one record, one batch.

A batch is a dict of arrays whose first axis is the example:

===========  ==================  ==========================================================
frames       uint8 [B,T,H,W,3]   RGB pixels; normalised on the device
frame_mask   bool [B,T]          which frames are there; a shorter clip is padded at the end
mel          float32 [B,S,M,F]   mel spectrograms of S clips of sound (M bins, F frames)
tokens       int32 [B,L]         ids; a placeholder id (>= the vocabulary) for every media vector
mask         bool [B,L]          which tokens are there; padding is at the end
labels       int32 [B,L]         what is taught; -100 is not
===========  ==================  ==========================================================

Where ``vljax encode`` has run, what the frozen towers made of the frames stands in their place:
frame_tokens [B,T,Q,D] or sight_features [B,T,D] or both, float32.
"""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Record:
    """One annotated clip or image, as a reader of a family yields it.

    Attributes:
      id: as the annotation file names it, for messages.
      path: the media file.
      kind: a clip of several frames, or one image.
      caption: what is taught in captioning; None in a conversation.
      turns: (role, text) with role "human" or "gpt" and ``<image>`` where the media stand;
        ``<other>`` where a distractor stands, another record's media that nothing asks about.
      tags: what stands around the media.
      frame_message: whether the frames' times are told after the first ``<image>``.
    """

    id: str
    path: Path
    kind: Literal["video", "image"]
    caption: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, str] = ("<Image>", "</Image>")
    frame_message: bool = False


class AnnotationError(ValueError):
    """An annotation file that is not what its family says; names file, place and what to do."""
