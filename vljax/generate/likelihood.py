"""How likely answers are after prompts: many of both at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vljax.generate.compiled import jit, placed
from vljax.generate.engine import LENGTHS, SIZES, Engine, Request, fit, kind
from vljax.models.video_llama import VideoLlama
from vljax.store import Tree


class Likelihood(NamedTuple):
    """Of an answer and its end.

    Attributes:
      nats: the log-likelihood. tokens: how many it is of.
      likeliest: whether each of them is the one that greedy decoding would choose.
    """

    nats: float
    tokens: int
    likeliest: bool

    @property
    def each(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens


def log_likelihoods(
    engine: Engine, requests: Sequence[Request], answers: Sequence[str]
) -> list[Likelihood]:
    """Of one answer a request; requests with the same kinds of media share a batch.

    Raises ValueError for a prompt that is too long.
    """
    groups: dict[tuple[bool, bool, bool], list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(kind(request.media), []).append(i)
    found: dict[int, Likelihood] = {}
    for indices in groups.values():
        for start in range(0, len(indices), SIZES[-1]):
            part = indices[start : start + SIZES[-1]]
            told = _batch(engine, [requests[i] for i in part], [answers[i] for i in part])
            found |= zip(part, told, strict=True)
    return [found[i] for i in range(len(requests))]


def _batch(engine: Engine, requests: Sequence[Request], answers: Sequence[str]) -> list[Likelihood]:
    """Of requests whose media are of one kind."""
    rows = [_ids(engine, r, a) for r, a in zip(requests, answers, strict=True)]
    rows += [rows[-1]] * (fit(len(rows), SIZES) - len(rows))
    length = fit(max(len(ids) for ids, _ in rows), LENGTHS)
    tokens, mask = engine.pad([ids for ids, _ in rows], length)
    counts = np.array([len(ids) - at for ids, at in rows])
    last = np.array([len(ids) - 1 for ids, _ in rows])[:, None]
    steps = np.arange(fit(counts.max(), LENGTHS))
    where = np.minimum(np.array([at for _, at in rows])[:, None] + steps, last)
    filled = [*requests, *[requests[-1]] * (len(rows) - len(requests))]
    media = engine.encode([r.media for r in filled])
    with placed(engine.placement):
        nats, best = _taught(engine.model, engine.params, tokens, mask, media, where)
    told = steps < counts[:, None]
    total = np.where(told, np.asarray(nats, np.float64), 0).sum(axis=1)
    greedy = np.all(np.asarray(best) | ~told, axis=1)
    each = zip(total, counts, greedy, strict=True)
    return [Likelihood(float(n), int(c), bool(g)) for n, c, g in each][: len(requests)]


def _ids(engine: Engine, request: Request, answer: str) -> tuple[list[int], int]:
    """Ids of prompt and answer, and where the answer begins."""
    prompt, whole = engine.prompt_ids(request), engine.answered_ids(request, answer)
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), None)
    return whole, min(len(prompt), len(whole)) if at is None else at


@jit("model")
def _taught(
    model: VideoLlama,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
    media: jax.Array | None,
    where: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Of the tokens at positions ``where`` [B, N], after all before each.

    Their log-probabilities, float32 [B, N], and whether none is likelier, bool [B, N].
    """

    def run(model: VideoLlama) -> jax.Array:
        hidden, _ = model.llama(model.splice(tokens, media), mask)
        return model.llama.logits(jnp.take_along_axis(hidden, where[..., None] - 1, axis=1))

    logits: Any = model.apply({"params": params}, method=run)
    said = jnp.take_along_axis(tokens, where, axis=1)[..., None]
    sure = jnp.take_along_axis(jax.nn.log_softmax(logits), said, axis=-1)[..., 0]
    chosen = jnp.take_along_axis(logits, said, axis=-1)[..., 0]
    return sure, chosen >= logits.max(axis=-1)
