"""Beam search over the cached decode, by Hugging Face's rules (transformers 4.28)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vljax.data.tokenizer import LLAMA, Special
from vljax.generate import decode
from vljax.generate.compiled import jit
from vljax.generate.sampling import Sampling, already_said, filtered, penalised
from vljax.models.video_llama import VideoLlama
from vljax.nn.attention import Caches, take_rows
from vljax.store import Tree

DEAD = -1e9  # the score of the beams that are equal to the first one at the start


class Open(NamedTuple):
    """Beams that go on: ids [B, K, N] and the sum of their log-probabilities [B, K]."""

    ids: jax.Array
    scores: jax.Array
    cache: Caches  # of B * K rows


class Finished(NamedTuple):
    """The best hypotheses that ended: ids [B, K, N] without eos, lengths and scores [B, K].

    A place that nothing has taken yet has the score minus infinity.
    """

    ids: jax.Array
    lengths: jax.Array
    scores: jax.Array


class State(NamedTuple):
    open: Open
    finished: Finished
    written: jax.Array
    done: jax.Array
    key: jax.Array


class Rules(NamedTuple):
    """What a search goes by. ``sampling``: its temperature and filters, where beams are drawn."""

    length_penalty: float | jax.Array
    repetition_penalty: float | jax.Array
    special: Special
    stops: decode.Stops
    sampling: Sampling | None


class Answer(NamedTuple):
    """The best hypothesis of each row.

    Attributes:
      ids: [B, N], its eos included where there was room for one, pad after it.
      scores: [B], sum of log-probabilities / (length with bos, without eos) ** length_penalty.
    """

    ids: jax.Array
    scores: jax.Array


@jit(("model", "beams", "max_new_tokens", "stops", "sampling"))
def beam_search(
    model: VideoLlama,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
    media: jax.Array | None,
    *,
    beams: int,
    max_new_tokens: int,
    length_penalty: float | jax.Array = 1.0,
    repetition_penalty: float | jax.Array = 1.0,
    special: Special = LLAMA,
    stops: decode.Stops = (),
    sampling: Sampling | None = None,
    key: jax.Array | None = None,
) -> Answer:
    """Continues prompts by the ``beams`` likeliest ways at every step, or by drawn ones.

    A row is done when it has ``beams`` finished hypotheses and no open beam can beat the worst of
    them at its present length. Lengths count the bos that the original's answers begin with.

    Args:
      tokens, mask: [B, L], padded at the end. media: [B, M, D] for the placeholders, in order.
      length_penalty: above 0 favours long answers. special: the tokenizer's.
      stops: token sequences that end a hypothesis as eos does, but stay in its ids.
      sampling: draws ways by its temperature, top-k and top-p (transformers' ``beam_sample``, in
        which a beam's score is filtered and divided by the temperature anew at every step); its
        other fields count for nothing. key: to draw by.
    """
    (B, _), K, N = tokens.shape, beams, max_new_tokens
    logits, cache = decode.prefill(model, params, tokens, mask, media, N)
    wide = jnp.repeat(mask, K, axis=0)
    scores = jnp.full((B, K), DEAD).at[:, 0].set(0)
    rules = Rules(length_penalty, repetition_penalty, special, stops, sampling)
    if sampling is not None:  # its beams are not equal at the start, since each draws for itself
        scores = jnp.zeros((B, K))
    ids = jnp.zeros((B, K, N), tokens.dtype)
    finished = Finished(ids, jnp.zeros((B, K), int), jnp.full((B, K), -jnp.inf))

    def advance(state: State) -> State:
        last = jax.lax.dynamic_index_in_dim(state.open.ids, state.written - 1, 2, keepdims=False)
        logits, cache = decode.extend(
            model, params, last.reshape(-1), wide, state.written, state.open.cache
        )
        return _choose(state._replace(open=state.open._replace(cache=cache)), logits, rules)

    beginning = Open(ids, scores, take_rows(cache, jnp.repeat(jnp.arange(B), K)))
    key = jax.random.key(0) if key is None else key
    begin = State(beginning, finished, jnp.zeros((), int), jnp.zeros(B, bool), key)
    state = jax.lax.while_loop(
        lambda s: (s.written < N) & ~s.done.all(),
        advance,
        _choose(begin, jnp.repeat(logits, K, axis=0), rules),
    )
    return _best(state, length_penalty, special)


def _choose(state: State, logits: jax.Array, rules: Rules) -> State:
    """Logits [B * K, V] -> the state one token on."""
    (B, K, N), V = state.open.ids.shape, logits.shape[-1]
    log_probs = jax.nn.log_softmax(logits)
    said = already_said(state.open.ids.reshape(-1, N), state.written, V, rules.special.bos)
    log_probs = penalised(log_probs, said, rules.repetition_penalty).reshape(B, K, V)
    sums = state.open.scores[..., None] + log_probs
    key, now = jax.random.split(state.key)
    # Twice as many as needed: at most K of them end, one a beam.
    best, at = _candidates(sums, 2 * K, rules.sampling, now)
    beam, token = at // V, (at % V).astype(state.open.ids.dtype)
    ids = jnp.take_along_axis(state.open.ids, beam[..., None], axis=1)
    with_it = jax.lax.dynamic_update_slice(ids, token[..., None], (0, 0, state.written))
    stopped = decode.ends(with_it.reshape(-1, N), state.written, rules.stops).reshape(B, 2 * K)
    ended = (token == rules.special.eos) | stopped

    length = (state.written + 1).astype(jnp.float32) ** rules.length_penalty
    # An end that is not among the K best does not count.
    counted = ended & (jnp.arange(2 * K) < K) & ~state.done[:, None]
    candidates = Finished(
        with_it, state.written + stopped.astype(int), jnp.where(counted, best / length, -jnp.inf)
    )
    finished = _keep_best(state.finished, candidates)
    worst = finished.scores.min(axis=1)
    done = state.done | ((worst > -jnp.inf) & (worst >= best[:, 0] / length))

    on = jnp.argsort(ended, axis=1, stable=True)[:, :K]
    beam, scores = (jnp.take_along_axis(x, on, axis=1) for x in (beam, best))
    ids = jnp.take_along_axis(with_it, on[..., None], axis=1)
    rows = (jnp.arange(B)[:, None] * K + beam).reshape(-1)
    opened = Open(ids, scores, take_rows(state.open.cache, rows))
    return State(opened, finished, state.written + 1, done, key)


def _candidates(
    sums: jax.Array, count: int, sampling: Sampling | None, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of sums [B, K, V] so many, best first: their sums, and where they are in [B, K * V].

    Drawn ones are drawn without putting back, by what the filters leave of each beam.
    """
    B, K, V = sums.shape
    if sampling is None:
        best, at = jax.lax.top_k(sums.reshape(B, -1), count)
        return best, at
    kept = filtered(sums.reshape(B * K, V), sampling, least=2).reshape(B, K * V)
    at = jax.lax.top_k(kept + jax.random.gumbel(key, kept.shape), count)[1]
    drawn = jnp.take_along_axis(kept, at, axis=1)
    order = jnp.argsort(-drawn, axis=1, stable=True)
    return jnp.take_along_axis(drawn, order, axis=1), jnp.take_along_axis(at, order, axis=1)


def _keep_best(kept: Finished, more: Finished) -> Finished:
    """The K best of both; of equals, what was there stays."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), kept, more)
    scores, at = jax.lax.top_k(both.scores, kept.scores.shape[1])
    ids = jnp.take_along_axis(both.ids, at[..., None], axis=1)
    return Finished(ids, jnp.take_along_axis(both.lengths, at, axis=1), scores)


def _best(state: State, length_penalty: float | jax.Array, special: Special) -> Answer:
    """Open beams of rows that are not done count as they stand; then the best, with its eos."""
    length = (state.written + 1).astype(jnp.float32) ** length_penalty
    scores = jnp.where(state.done[:, None], -jnp.inf, state.open.scores / length)
    standing = Finished(state.open.ids, jnp.full(scores.shape, state.written), scores)
    final = _keep_best(state.finished, standing)
    ids, lengths = final.ids[:, 0], final.lengths[:, :1]
    at = jnp.arange(ids.shape[1])
    ids = jnp.where(at < lengths, ids, jnp.where(at == lengths, special.eos, special.pad))
    return Answer(ids, final.scores[:, 0])
