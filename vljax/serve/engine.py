"""Questions in, pieces of answers out: all that the server knows of the engine."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vljax.generate.engine import LENGTHS, Engine, Request
from vljax.generate.media import FRAMES, Media
from vljax.generate.sampling import Sampling
from vljax.generate.session import settled
from vljax.generate.table import Table


@dataclasses.dataclass(frozen=True, eq=False)
class Ask:
    """One question. Answers that are drawn with the same ``seed`` are the same.

    ``stream``: whether its answer is wanted piece by piece.
    """

    request: Request
    sampling: Sampling
    seed: int = 0
    stream: bool = True


class Piece(NamedTuple):
    """What an answer says next.

    Attributes:
      text: what is added. tokens: how many of the answer there are now.
      end: why it ends with this piece, "stop" or "length"; "" where it goes on.
    """

    text: str
    tokens: int
    end: str = ""


Pieces = list[tuple[Ask, Piece]]


class Runner(Protocol):
    """Answers questions that come and go, a token of each at a time."""

    def prompt_tokens(self, ask: Ask) -> int:
        """Raises ValueError where the prompt is too long, or says what it may not."""
        ...

    def free(self) -> int:
        """How many more questions may join."""
        ...

    def join(self, asks: Sequence[Ask]) -> Pieces:
        """Reads prompts; answers that end there are told of."""
        ...

    def advance(self) -> Pieces:
        """A token more of each answer; who says nothing new is not among the pieces."""
        ...

    def leave(self, ask: Ask) -> None:
        """Gives up an answer; of one that has ended, nothing."""
        ...

    def clear(self) -> None:
        """Gives up all answers."""
        ...

    def warm(self, show: Callable[[int, int], None]) -> int:
        """Compiles what most questions will need, in so many parts; ``show`` (done, all)."""
        ...


class Writing:
    """One answer while it is being written."""

    def __init__(self, ask: Ask, engine: Engine):
        self._ask, self._engine = ask, engine
        self._ids: list[int] = []
        self._told = ""

    def add(self, token: int) -> Piece:
        self._ids.append(token)
        ids, engine = self._ids, self._engine
        stops = any(tuple(ids[-len(s) :]) == s for s in engine.stops)
        if stops or token == engine.tokenizer.special.eos:
            return self._piece(engine.text(np.array(ids)), "stop")
        if len(ids) >= self._ask.sampling.max_new_tokens:
            return self._piece(engine.text(np.array(ids)), "length")
        if not self._ask.stream:
            return Piece("", len(ids))
        return self._piece(settled(engine.tokenizer.decode(ids), engine.template), "")

    def _piece(self, text: str, end: str) -> Piece:
        if text.startswith(self._told):
            added = text[len(self._told) :]
        elif not end:
            return Piece("", len(self._ids))
        else:  # a model that says its own role's name after other words starts anew
            added = "\n" + text
        self._told = text
        return Piece(added, len(self._ids), end)


class EngineRunner:
    """The engine as a runner; up to ``most`` questions at a time."""

    def __init__(self, engine: Engine, most: int = 16):
        self.engine = engine
        self.table: Table[Ask] = Table(engine, most)
        self._writing: dict[Ask, Writing] = {}

    def prompt_tokens(self, ask: Ask) -> int:
        length = len(self.engine.prompt_ids(ask.request, sys.maxsize))
        room = LENGTHS[-1] - ask.sampling.max_new_tokens
        if length > room:
            raise ValueError(
                f"messages: got {length} tokens, expected at most {room} beside an answer's "
                f"{ask.sampling.max_new_tokens}: begin a new conversation"
            )
        return length

    def free(self) -> int:
        return self.table.free()

    def join(self, asks: Sequence[Ask]) -> Pieces:
        given = [a.request for a in asks], [a.sampling for a in asks], [a.seed for a in asks]
        first = self.table.join(asks, *given)
        self._writing |= {ask: Writing(ask, self.engine) for ask in asks}
        return self._told(zip(asks, first, strict=True))

    def advance(self) -> Pieces:
        return self._told(self.table.advance()) if self._writing else []

    def leave(self, ask: Ask) -> None:
        self.table.leave(ask)
        self._writing.pop(ask, None)

    def clear(self) -> None:
        self.table.clear()
        self._writing.clear()

    def _told(self, tokens: Iterable[tuple[Ask, int]]) -> Pieces:
        pieces = []
        for ask, token in tokens:
            piece = self._writing[ask].add(token)
            if piece.end:
                self.leave(ask)
            if piece.text or piece.end:
                pieces.append((ask, piece))
        return pieces

    def warm(self, show: Callable[[int, int], None]) -> int:
        sizes, most = self.table.sizes, self.table.most
        turns = [(had, new) for new in sizes for had in (0, *sizes[:-1]) if had + new <= most]
        media = examples(self.engine)
        done, total = 0, len(sizes) * len(media) + len(turns)
        for size in sizes:
            for medium in media:
                self.engine.encode([told_apart(medium, i) for i in range(size)])
                show(done := done + 1, total)
        for turn in turns:
            for count in filter(None, turn):
                self.join([Ask(Request("What is it?"), Sampling()) for _ in range(count)])
                self.advance()
            self.clear()
            show(done := done + 1, total)
        return total


def examples(engine: Engine) -> list[Media]:
    """Blank ones: a clip with sound, and an image, as far as the model has these senses."""
    size, (sees, hears) = engine.size, engine.senses()
    clip = np.zeros((min(FRAMES, size.max_frames), size.vit.image, size.vit.image, 3), np.uint8)
    sound = size.audio
    mel = np.zeros((sound.clips, sound.mel_bins, sound.mel_frames), np.float32) if hears else None
    return [Media(clip, mel), Media(clip[:1], None)] if sees else [Media(None, mel)]


def told_apart(media: Media, number: int) -> Media:
    """What is the same is encoded once."""
    frames = None if media.frames is None else np.full_like(media.frames, number)
    mel = None if media.mel is None else np.full_like(media.mel, number)
    return dataclasses.replace(media, frames=frames, mel=mel)
