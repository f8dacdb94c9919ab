"""Prefill and cached decoding as pure functions of arrays, compiled once a shape."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vljax.data.tokenizer import LLAMA, Special
from vljax.generate.compiled import jit
from vljax.generate.sampling import Sampling, already_said, choose, penalised
from vljax.models.video_llama import VideoLlama
from vljax.nn.attention import Cache
from vljax.store import Tree

Stops = tuple[tuple[int, ...], ...]


class Step(NamedTuple):
    """The decoding loop's state: ids [B, N], how many are written, cache, who is done."""

    ids: jax.Array
    written: jax.Array
    token: jax.Array
    cache: Cache
    done: jax.Array
    key: jax.Array


def prefill(
    model: VideoLlama,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
    media: jax.Array | None,
    spare: int,
) -> tuple[jax.Array, Cache]:
    """Reads prompts into a cache with ``spare`` slots after them.

    tokens and mask [B, L], padded at the end; media [B, M, D] for the placeholders, in order.
    Returns the logits [B, V] after each prompt, and the cache.
    """
    B, L = tokens.shape
    embeddings = _apply(model, params, "splice", tokens, media)
    causal = jnp.tril(jnp.ones((L, L + spare), bool)) & _slots(mask, 0, spare)[:, None]
    positions = jnp.broadcast_to(jnp.arange(L), (B, L))
    empty = _apply(model, params, "empty_cache", B, L + spare)
    hidden, cache = _apply(model, params, "decode", embeddings, causal, positions, empty)
    last = jnp.take_along_axis(hidden, (mask.sum(1) - 1)[:, None, None], axis=1)
    return _apply(model, params, "head", last)[:, 0], cache


def extend(
    model: VideoLlama,
    params: Tree,
    token: jax.Array,
    mask: jax.Array,
    written: jax.Array | int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """One more token [B] of each row -> the logits [B, V] after it, and the cache.

    ``mask`` [B, L] is the prompts'; ``written`` counts generated tokens, this one included.
    """
    spare = cache.keys.shape[2] - mask.shape[1]
    embedded = _apply(model, params, "splice", token[:, None], None)
    seen = _slots(mask, written, spare)[:, None]
    at = (mask.sum(1) + written - 1)[:, None]
    hidden, cache = _apply(model, params, "decode", embedded, seen, at, cache)
    return _apply(model, params, "head", hidden)[:, 0], cache


def _slots(mask: jax.Array, written: jax.Array | int, spare: int) -> jax.Array:
    """bool [B, L + spare]: the prompt's tokens and the ``written`` generated ones."""
    generated = jnp.broadcast_to(jnp.arange(spare) < written, (mask.shape[0], spare))
    return jnp.concatenate([mask.astype(bool), generated], axis=1)


def _apply(model: VideoLlama, params: Tree, method: str, *args: Any) -> Any:
    return model.apply({"params": params}, *args, method=method)


@jit(("model", "sampling", "stops"))
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
    B, N = tokens.shape[0], sampling.max_new_tokens
    first_logits, cache = prefill(model, params, tokens, mask, media, N)

    def advance(step: Step) -> Step:
        logits, cache = extend(model, params, step.token, mask, step.written, step.cache)
        return emit(step._replace(cache=cache), logits)

    def emit(step: Step, logits: jax.Array) -> Step:
        key, now = jax.random.split(step.key)
        if sampling.repetition_penalty != 1:
            said = already_said(step.ids, step.written, logits.shape[-1], special.bos)
            logits = penalised(logits, said, sampling.repetition_penalty)
        token = jnp.where(step.done, special.pad, choose(logits, now, sampling))
        ids = jax.lax.dynamic_update_slice(step.ids, token[:, None], (0, step.written))
        done = step.done | (token == special.eos) | _ends(ids, step.written, stops)
        return Step(ids, step.written + 1, token, step.cache, done, key)

    ids = jnp.full((B, N), special.pad, tokens.dtype)
    nothing = jnp.zeros(B, tokens.dtype)
    begin = Step(ids, jnp.zeros((), int), nothing, cache, jnp.zeros(B, bool), key)
    state = jax.lax.while_loop(
        lambda s: (s.written < N) & ~s.done.all(), advance, emit(begin, first_logits)
    )
    return state.ids, first_logits


def _ends(ids: jax.Array, last: jax.Array, stops: Stops) -> jax.Array:
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
