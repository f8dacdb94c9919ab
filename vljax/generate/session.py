"""One conversation's cache, kept from turn to turn, and its answers in pieces."""

from collections.abc import Iterator

import jax
import numpy as np

from vljax.data.text import Template, spoken
from vljax.generate import decode
from vljax.generate.compiled import jit, placed
from vljax.generate.engine import LENGTHS, Engine, Request, fit
from vljax.generate.sampling import Sampling

blank = jit(("model", "rows", "room"))(decode.blank)
CUTS = (16, 32, *LENGTHS)  # of what a turn adds; one program each
ROOMS = (256, 512, 1024, 2048, 4096)
UNFINISHED = "\ufffd"  # what a character's first bytes are decoded to


class Session:
    """Reads of each prompt only what the cache does not hold yet.

    Prompts are compared by their ids and their media by what the towers are given, so that it does
    not matter who calls, or what was left out; what no longer stands there is written over.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.context: decode.Context | None = None
        self.ids: list[int] = []  # that the context holds
        self.media = b""  # what stands for their placeholders
        self.reads = 0  # tokens that the last turn had to read before it could answer

    def answer(self, request: Request, sampling: Sampling = Sampling(), seed: int = 0) -> str:
        """As ``Engine.answer`` of this request alone. No beams."""
        return list(self._texts(request, sampling, seed, sampling.max_new_tokens))[-1][1]

    def stream(
        self, request: Request, sampling: Sampling = Sampling(), seed: int = 0
    ) -> Iterator[str]:
        """The same, in pieces as they are settled, token by token; joined they are the answer.

        One exception: a model that says its own role's name after other words starts anew, and so
        does the stream, on a line of its own.
        """
        told = ""
        for raw, whole in self._texts(request, sampling, seed, 1):
            text = settled(raw, self.engine.template) if raw is not None else whole
            if text.startswith(told):
                piece = text[len(told) :]
            elif raw is None:
                piece = "\n" + text
            else:
                continue
            if piece:
                yield piece
            told = text

    def _texts(
        self, request: Request, sampling: Sampling, seed: int, stride: int
    ) -> Iterator[tuple[str | None, str]]:
        """(text so far, "") every ``stride`` tokens, then (None, the answer)."""
        if sampling.beams > 1:
            raise ValueError(f"beams: got {sampling.beams}, expected 1: they share no cache")
        engine = self.engine
        rest = sampling, engine.stops, engine.tokenizer.special
        prompt = engine.prompt_ids(request, LENGTHS[-1] - sampling.max_new_tokens)
        with placed(engine.placement):
            step = self._begin(prompt, request, sampling, seed)
        while True:
            written, row = int(step.written), np.asarray(step.ids)[0]
            # The last token is chosen, but not yet read.
            self.context, self.ids = step.context, [*prompt, *row[: written - 1].tolist()]
            if step.done.all() or written >= sampling.max_new_tokens:
                break
            yield engine.tokenizer.decode(row[:written].tolist()), ""
            until = min(written + stride, sampling.max_new_tokens)
            self.context = None  # until it is back
            with placed(engine.placement):
                step = decode.go_on(engine.model, engine.params, step, until, *rest)
        yield None, engine.text(row)

    def _begin(
        self, prompt: list[int], request: Request, sampling: Sampling, seed: int
    ) -> decode.Step:
        engine, here = self.engine, self.engine.tokenizer.image_here
        digest = b"" if request.media is None else request.media.digest()
        kept = 0
        if self.context is not None and digest == self.media:
            kept = _shared(self.ids, prompt[:-1])  # something must be read to go on from
        if here in prompt[kept:]:  # media are read from their first vector on
            kept = 0
        tokens, mask = engine.pad([prompt[kept:]], fit(len(prompt) - kept, CUTS))
        context = self._with_room(kept + tokens.shape[1] + sampling.max_new_tokens)
        self.context, self.media = None, digest  # its buffers are used up
        self.reads = len(prompt) - kept
        media = engine.encode([request.media]) if here in prompt[kept:] else None
        rest = jax.random.key(seed), sampling, engine.stops, engine.tokenizer.special
        return decode.resume(engine.model, engine.params, context, kept, tokens, mask, media, *rest)

    def _with_room(self, need: int) -> decode.Context:
        room = fit(min(2 * need, ROOMS[-1]), ROOMS)
        if self.context is None:
            return blank(self.engine.model, self.engine.params, 1, room)
        enough = self.context.seen.shape[1] >= need
        return self.context if enough else decode.widened(self.context, room)


def _shared(a: list[int], b: list[int]) -> int:
    """How many leading ids are the same."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def settled(text: str, template: Template) -> str:
    """What of an answer can be told while it is being written.

    Not a character's first bytes, nor what may become the stop or a role's name, nor white space
    that may turn out to be its last.
    """
    text = text.rstrip(UNFINISHED)
    marks = [template.stop]
    if template.family is not None:
        marks.append(f"{template.roles[1]}:")
    whole = template.stop in text
    longest = max(
        (n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0
    )
    return spoken(text if whole else text[: len(text) - longest], template)
