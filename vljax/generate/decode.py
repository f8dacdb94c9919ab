"""Prefill and cached decoding as pure functions of arrays, compiled once a shape."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vljax.data.tokenizer import LLAMA, Special
from vljax.generate.compiled import jit
from vljax.generate.sampling import Sampling, already_said, choose, penalised
from vljax.models.video_llama import VideoLlama
from vljax.nn.attention import Cache, Caches, next_slot, slots
from vljax.store import Tree

Stops = tuple[tuple[int, ...], ...]


class Context(NamedTuple):
    """What rows have been given so far.

    Attributes:
      seen: bool [B, S], the slots of the cache that hold it. length: [B], how many tokens it is.
    """

    cache: Caches
    seen: jax.Array
    length: jax.Array


class Step(NamedTuple):
    """The decoding loop's state.

    Attributes:
      ids: [B, N], of which the first ``written`` are chosen, the last of them not yet read.
      done: bool [B].
    """

    context: Context
    ids: jax.Array
    written: jax.Array
    done: jax.Array
    key: jax.Array


def blank(model: VideoLlama, params: Tree, rows: int, room: int) -> Context:
    """With room for so many tokens a row."""
    cache = _apply(model, params, "empty_cache", rows, room)
    return Context(cache, jnp.zeros((rows, room), bool), jnp.zeros(rows, int))


@jit("room", donate_argnames="context")
def widened(context: Context, room: int) -> Context:
    """With room for so many tokens a row. ``context`` is used up."""
    more = room - context.seen.shape[1]

    def widen(cache: Cache) -> Cache:
        whole = [(0, 0)] * (cache.keys.ndim - 1)
        keys = jnp.pad(cache.keys, [*whole, (0, more)])
        return cache._replace(
            keys=keys, values=jnp.pad(cache.values, [*whole[1:], (0, more), (0, 0)])
        )

    cache: Caches = jax.tree.map(widen, context.cache, is_leaf=lambda x: isinstance(x, Cache))
    return context._replace(cache=cache, seen=jnp.pad(context.seen, ((0, 0), (0, more))))


def rewound(context: Context, length: jax.Array | int) -> Context:
    """One row's first ``length`` tokens, which lie without a gap; what follows is written over."""

    def rewind(cache: Cache) -> Cache:
        return cache._replace(next_slot=jnp.full_like(cache.next_slot, length))

    cache: Caches = jax.tree.map(rewind, context.cache, is_leaf=lambda x: isinstance(x, Cache))
    seen = jnp.arange(context.seen.shape[1])[None] < length
    return Context(cache, seen, jnp.full_like(context.length, length))


def read(
    model: VideoLlama,
    params: Tree,
    context: Context,
    tokens: jax.Array,
    mask: jax.Array,
    media: jax.Array | None = None,
) -> tuple[jax.Array, Context]:
    """Adds tokens to what is there.

    tokens and mask [B, L], padded at the end; media [B, M, D] for the placeholders, in order.
    Returns the logits [B, V] after each row's last token, and the context.
    """
    L, slot = tokens.shape[1], next_slot(context.cache)
    embeddings = _apply(model, params, "splice", tokens, media)
    nothing = jnp.zeros_like(context.seen)
    new = jax.lax.dynamic_update_slice(nothing, mask.astype(bool), (0, slot))
    earlier = jnp.arange(context.seen.shape[1]) <= slot + jnp.arange(L)[:, None]
    sees = context.seen[:, None] | (new[:, None] & earlier)
    positions = context.length[:, None] + jnp.arange(L)
    hidden, cache = _apply(model, params, "decode", embeddings, sees, positions, context.cache)
    last = jnp.take_along_axis(hidden, (mask.sum(1) - 1)[:, None, None], axis=1)
    logits = _apply(model, params, "head", last)[:, 0]
    return logits, Context(cache, context.seen | new, context.length + mask.sum(1))


def prefill(
    model: VideoLlama,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
    media: jax.Array | None,
    spare: int,
) -> tuple[jax.Array, Caches]:
    """Reads prompts into a cache with ``spare`` slots after them.

    tokens and mask [B, L], padded at the end; media [B, M, D] for the placeholders, in order.
    Returns the logits [B, V] after each prompt, and the cache.
    """
    B, L = tokens.shape
    empty = blank(model, params, B, L + spare)
    logits, context = read(model, params, empty, tokens, mask, media)
    return logits, context.cache


def extend(
    model: VideoLlama,
    params: Tree,
    token: jax.Array,
    mask: jax.Array,
    written: jax.Array | int,
    cache: Caches,
) -> tuple[jax.Array, Caches]:
    """One more token [B] of each row -> the logits [B, V] after it, and the cache.

    ``mask`` [B, L] is the prompts'; ``written`` counts generated tokens, this one included.
    """
    generated = jnp.arange(slots(cache) - mask.shape[1]) < written - 1
    generated = jnp.broadcast_to(generated, (mask.shape[0], *generated.shape))
    seen = jnp.concatenate([mask.astype(bool), generated], axis=1)
    context = Context(cache, seen, mask.sum(1) + written - 1)
    logits, context = _read_one(model, params, context, token)
    return logits, context.cache


def _read_one(
    model: VideoLlama, params: Tree, context: Context, token: jax.Array
) -> tuple[jax.Array, Context]:
    return read(model, params, context, token[:, None], jnp.ones((len(token), 1), bool))


def _apply(model: VideoLlama, params: Tree, method: str, *args: Any) -> Any:
    return model.apply({"params": params}, *args, method=method)


def generate(
    model: VideoLlama,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
    media: jax.Array | None,
    key: jax.Array,
    sampling: Sampling,
    stops: Stops,
    special: Special = LLAMA,
) -> tuple[jax.Array, jax.Array]:
    """Continues prompts until each row has stopped.

    Args:
      tokens, mask: [B, L], padded at the end. media: [B, M, D] for the placeholders, in order.
      stops: token sequences that end a row (they stay in its ids), besides eos.
      special: the tokenizer's.

    Returns ids [B, max_new_tokens], pad after a row's end, and the logits [B, V] after the prompt.
    """
    end = sampling.max_new_tokens
    rest = (sampling, stops, special)
    step, logits = begin(model, params, tokens, mask, media, key, *rest)
    return go_on(model, params, step, end, *rest).ids, logits


@jit(("model", "sampling", "stops"))
def begin(
    model: VideoLlama,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
    media: jax.Array | None,
    key: jax.Array,
    sampling: Sampling,
    stops: Stops,
    special: Special,
) -> tuple[Step, jax.Array]:
    """``generate``'s arguments -> its first token, and the logits [B, V] that it was chosen by."""
    B, L = tokens.shape
    empty = blank(model, params, B, L + sampling.max_new_tokens)
    logits, context = read(model, params, empty, tokens, mask, media)
    return _first(context, logits, key, sampling, stops, special), logits


@jit(("model", "sampling", "stops"), donate_argnames="context")
def resume(
    model: VideoLlama,
    params: Tree,
    context: Context,
    kept: jax.Array | int,
    tokens: jax.Array,
    mask: jax.Array,
    media: jax.Array | None,
    key: jax.Array,
    sampling: Sampling,
    stops: Stops,
    special: Special,
) -> Step:
    """As ``begin``, of one row, after the first ``kept`` tokens of ``context``, which is used up.

    The tokens lie without a gap before and afterwards: what is padding is written over.
    """
    context = rewound(context, kept)
    logits, context = read(model, params, context, tokens, mask, media)
    context = rewound(context, kept + mask.sum())
    return _first(context, logits, key, sampling, stops, special)


def _first(
    context: Context,
    logits: jax.Array,
    key: jax.Array,
    sampling: Sampling,
    stops: Stops,
    special: Special,
) -> Step:
    B = logits.shape[0]
    ids = jnp.full((B, sampling.max_new_tokens), special.pad, jnp.int32)
    step = Step(context, ids, jnp.zeros((), int), jnp.zeros(B, bool), key)
    return _emit(step, logits, sampling, stops, special)


@jit(("model", "sampling", "stops"), donate_argnames="step")
def go_on(
    model: VideoLlama,
    params: Tree,
    step: Step,
    until: jax.Array | int,
    sampling: Sampling,
    stops: Stops,
    special: Special,
) -> Step:
    """Writes until there are ``until`` tokens or all rows have stopped. ``step`` is used up."""

    def advance(step: Step) -> Step:
        last = jax.lax.dynamic_index_in_dim(step.ids, step.written - 1, 1, keepdims=False)
        logits, context = _read_one(model, params, step.context, last)
        return _emit(step._replace(context=context), logits, sampling, stops, special)

    return jax.lax.while_loop(lambda s: (s.written < until) & ~s.done.all(), advance, step)


def _emit(
    step: Step, logits: jax.Array, sampling: Sampling, stops: Stops, special: Special
) -> Step:
    """Chooses a token of each row by logits [B, V]."""
    key, now = jax.random.split(step.key) if sampling.temperature else (step.key, step.key)
    if sampling.repetition_penalty != 1:
        said = already_said(step.ids, step.written, logits.shape[-1], special.bos)
        logits = penalised(logits, said, sampling.repetition_penalty)
    token = jnp.where(step.done, special.pad, choose(logits, now, sampling)).astype(step.ids.dtype)
    ids = jax.lax.dynamic_update_slice(step.ids, token[:, None], (0, step.written))
    done = step.done | (token == special.eos) | ends(ids, step.written, stops)
    return Step(step.context, ids, step.written + 1, done, key)


def ends(ids: jax.Array, last: jax.Array, stops: Stops) -> jax.Array:
    """bool [B]: whether a row's ids up to and including column ``last`` end with a stop."""
    ended = jnp.zeros(ids.shape[0], bool)
    for stop in stops:
        if len(stop) > ids.shape[1]:
            continue
        start = jnp.maximum(last - len(stop) + 1, 0)
        tail = jax.lax.dynamic_slice_in_dim(ids, start, len(stop), axis=1)
        ended |= (tail == jnp.array(stop, ids.dtype)).all(1) & (last + 1 >= len(stop))
    return ended


@jit("model")
def encode_frames(
    model: VideoLlama, params: Tree, frames: jax.Array, valid: jax.Array
) -> jax.Array:
    """frames uint8 [B, T, H, W, 3], valid bool [B, T] -> soft prompts [B, queries, D]."""

    def encode(model: VideoLlama, frames: jax.Array, valid: jax.Array) -> jax.Array:
        return model.video_tokens(model.frame_tokens(frames, pixels=True), valid)

    media: Any = model.apply({"params": params}, frames, valid, method=encode)
    return media


@jit("model")
def encode_sound(model: VideoLlama, params: Tree, mel: jax.Array) -> jax.Array:
    """mel float32 [B, S, bins, frames] -> soft prompts [B, queries, D]."""

    def encode(model: VideoLlama, mel: jax.Array) -> jax.Array:
        return model.audio_tokens(model.sound_features(mel))

    media: Any = model.apply({"params": params}, mel, method=encode)
    return media
