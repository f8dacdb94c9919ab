"""Questions in, pieces of answers out: all that the server knows of the engine."""

import dataclasses
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, Protocol

from vljax.generate.engine import LENGTHS, Engine, Request
from vljax.generate.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Ask:
    """One question. Answers that are drawn with a ``seed`` are drawn alone, the same each time."""

    request: Request
    sampling: Sampling
    seed: int | None = None


class Piece(NamedTuple):
    """What one row says next.

    Attributes:
      row: of the batch. text: what is added. tokens: how many of its answer there are now.
      end: why the row ends with this piece, "stop" or "length"; "" where it goes on.
    """

    row: int
    text: str
    tokens: int
    end: str = ""


class Runner(Protocol):
    """Answers batches."""

    def prompt_tokens(self, ask: Ask) -> int:
        """Raises ValueError where the prompt is too long, or says what it may not."""
        ...

    def alike(self, ask: Ask) -> Hashable:
        """Questions for which this is equal may be answered together."""
        ...

    def warm(self, batch: int) -> int:
        """Compiles what questions will need, up to batches of ``batch``; how many programs."""
        ...

    def run(self, asks: Sequence[Ask], wanted: Callable[[int], bool]) -> Iterator[Piece]:
        """Pieces of all rows, in turns; a row that is not ``wanted`` any more may be left out."""
        ...


class EngineRunner:
    """The engine as a runner."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def prompt_tokens(self, ask: Ask) -> int:
        length = len(self.engine.prompt_ids(ask.request, sys.maxsize))
        room = LENGTHS[-1] - ask.sampling.max_new_tokens
        if length > room:
            raise ValueError(
                f"messages: got {length} tokens, expected at most {room} beside an answer's "
                f"{ask.sampling.max_new_tokens}: begin a new conversation"
            )
        return length

    def alike(self, ask: Ask) -> Hashable:
        media = ask.request.media
        kind = media and (media.frames is not None, media.mel is not None)
        alone = object() if ask.seed is not None and ask.sampling.temperature else None
        return kind, ask.sampling, alone

    def warm(self, batch: int) -> int:
        return 0

    def run(self, asks: Sequence[Ask], wanted: Callable[[int], bool]) -> Iterator[Piece]:
        answers = self.engine.answer([a.request for a in asks], asks[0].sampling, asks[0].seed or 0)
        for row, answer in enumerate(answers):
            yield Piece(row, answer, len(self.engine.tokenizer.encode(answer)), "stop")
