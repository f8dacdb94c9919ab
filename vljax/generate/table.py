"""Who sits in which row of a batch that is being decoded, and how much room it needs."""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

from vljax.generate import running as programs
from vljax.generate.compiled import placed
from vljax.generate.engine import LENGTHS, Engine, Request, fit, kind
from vljax.generate.media import Encoded, Media
from vljax.generate.running import Rows
from vljax.generate.sampling import Sampling

G = TypeVar("G", bound=Hashable)
ROOMS = LENGTHS[1:]  # of the cache's slots a row: it grows with the longest that sits there
SPARE = 32  # slots at least, when room is made


class Table(Generic[G]):
    """Answers up to ``most`` guests' questions token by token; each comes and goes by itself.

    The cache has rows for 1, 4, 16, ... guests and slots for the longest of them: it is made larger
    or smaller only when it must be, and one program serves each of its few shapes.
    """

    def __init__(self, engine: Engine, most: int = 16):
        self.engine, self.most = engine, most
        self.sizes = (*(n for n in (1, 4, 16, 64) if n < most), most)
        self.clear()

    def clear(self) -> None:
        """Sends everybody away."""
        self._rows: Rows | None = None
        self._seats: list[G | None] = []
        self._lengths: list[int] = []  # tokens that each row's context holds
        self._slot = self._room = 0  # the next slot of the cache, and how many it has

    @property
    def guests(self) -> list[G]:
        return [g for g in self._seats if g is not None]

    def free(self) -> int:
        return self.most - len(self.guests)

    def join(
        self,
        guests: Sequence[G],
        requests: Sequence[Request],
        samplings: Sequence[Sampling],
        seeds: Sequence[int],
    ) -> list[int]:
        """Seats guests and reads their prompts -> the first token of each one's answer."""
        count, engine = len(guests), self.engine
        assert 0 < count <= self.free(), "more guests than free seats"
        most = [LENGTHS[-1] - s.max_new_tokens for s in samplings]
        prompts = [engine.prompt_ids(r, m) for r, m in zip(requests, most, strict=True)]
        lengths = [len(p) for p in prompts]
        size, length = fit(count, self.sizes), fit(max(lengths), LENGTHS)
        tokens, mask = engine.pad([*prompts, *[[]] * (size - count)], length)
        media = soft_prompts(engine, [r.media for r in requests], size)
        filled = [*samplings, *[Sampling()] * (size - count)], [*seeds, *[0] * (size - count)]
        bos = engine.tokenizer.special.bos
        with placed(engine.placement):
            new = programs.begin(
                engine.model, engine.params, tokens, mask, media, programs.draws(*filled), bos
            )
        first = np.array(new.token)[:count].tolist()
        if not self.guests:
            self._rows, self._slot, self._room = new, length, length
            self._seats = [*guests, *[None] * (size - count)]
            self._lengths = [*lengths, *[0] * (size - count)]
            return first
        self._seat(guests, lengths, new, size, length)
        return first

    def _seat(
        self, guests: Sequence[G], lengths: Sequence[int], new: Rows, size: int, length: int
    ) -> None:
        """Among those who sit here already."""
        rows = fit(len(self.guests) + len(guests), self.sizes)
        if rows > len(self._seats) or length > self._room:
            self._arrange(max(rows, len(self._seats)), max(length, self._room))
        places = [i for i, g in enumerate(self._seats) if g is None][: len(guests)]
        nowhere = [len(self._seats)] * (size - len(guests))
        with placed(self.engine.placement):
            self._rows = programs.seat(self._rows, new, np.array([*places, *nowhere]))
        self._slot = max(self._slot, length)
        for place, guest, held in zip(places, guests, lengths, strict=True):
            self._seats[place], self._lengths[place] = guest, held

    def leave(self, guest: G) -> None:
        """Frees a seat; of one who has left already, nothing."""
        if guest in self._seats:
            self._seats[self._seats.index(guest)] = None

    def advance(self) -> list[tuple[G, int]]:
        """The next token of every guest."""
        assert self._rows is not None and self.guests, "nobody is here"
        if self._slot == self._room:
            longest = max(
                n for g, n in zip(self._seats, self._lengths, strict=True) if g is not None
            )
            need = min(longest + max(SPARE, longest // 2), ROOMS[-1])
            self._arrange(fit(len(self.guests), self.sizes), fit(need, ROOMS))
        here = np.array([g is not None for g in self._seats])
        with placed(self.engine.placement):
            self._rows = programs.advance(self.engine.model, self.engine.params, self._rows, here)
        tokens = np.array(self._rows.token).tolist()
        self._slot += 1
        said = []
        for i, guest in enumerate(self._seats):
            if guest is not None:
                self._lengths[i] += 1
                said.append((guest, tokens[i]))
        return said

    def _arrange(self, size: int, room: int) -> None:
        """Those who are here move to the front, of rows and of slots."""
        order = [i for i, g in enumerate(self._seats) if g is not None]
        empty = size - len(order)
        with placed(self.engine.placement):
            # Whoever has left is forgotten: empty rows are another's copies.
            filled = np.array([*order, *[order[0]] * empty])
            self._rows = programs.arrange(self._rows, filled, room)
        self._seats = [*(self._seats[i] for i in order), *[None] * empty]
        self._lengths = [*(self._lengths[i] for i in order), *[0] * empty]
        self._slot, self._room = max(self._lengths), room


def soft_prompts(engine: Engine, media: Sequence[Media | Encoded | None], rows: int) -> np.ndarray:
    """[rows, M, D] of media of any kinds, each kind encoded together; zeros for none."""
    size = engine.size
    most = size.audio_qformer.queries + size.video_qformer.queries
    made = np.zeros((rows, most, size.llama.width), engine.dtype)
    for one in sorted({kind(m) for m in media} - {kind(None)}):
        at = [i for i, m in enumerate(media) if kind(m) == one]
        prompts = engine.encode([media[i] for i in at])
        assert prompts is not None
        made[at, : prompts.shape[1]] = prompts
    return made
