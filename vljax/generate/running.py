"""A batch that questions join and leave while it is being decoded: its programs.

How each row is drawn is data, not part of a program, so that one program serves all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vljax.generate import decode
from vljax.generate.compiled import jit
from vljax.generate.decode import Context
from vljax.generate.sampling import Sampling, likeliest, penalised
from vljax.models.video_llama import VideoLlama
from vljax.nn.attention import Cache, slots
from vljax.store import Tree


class Draw(NamedTuple):
    """``Sampling`` of each row, as arrays [B], and what its draws begin with."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    penalty: jax.Array
    seed: jax.Array


class Rows(NamedTuple):
    """Questions at one step of their answers.

    Attributes:
      token: [B], the last that was chosen, not yet read. chosen: [B], how many were.
      said: bool [B, V], which ids were; bos counts (see ``already_said``).
    """

    context: Context
    token: jax.Array
    chosen: jax.Array
    said: jax.Array
    draw: Draw


def draws(samplings: Sequence[Sampling], seeds: Sequence[int]) -> Draw:
    return Draw(
        jnp.array([s.temperature for s in samplings], jnp.float32),
        jnp.array([s.top_k for s in samplings], jnp.int32),
        jnp.array([s.top_p for s in samplings], jnp.float32),
        jnp.array([s.repetition_penalty for s in samplings], jnp.float32),
        jnp.array([seed % 2**32 for seed in seeds], jnp.uint32),
    )


@jit("model")
def begin(
    model: VideoLlama,
    params: Tree,
    tokens: jax.Array,
    mask: jax.Array,
    media: jax.Array,
    draw: Draw,
    bos: int,
) -> Rows:
    """Reads prompts and chooses the first token of each answer.

    tokens and mask [B, L], padded at the end; media [B, M, D] for the placeholders, in order.
    """
    B, L = tokens.shape
    empty = decode.blank(model, params, B, L)
    logits, context = decode.read(model, params, empty, tokens, mask, media)
    none = jnp.zeros(B, jnp.int32)
    said = jnp.zeros((B, logits.shape[-1]), bool).at[:, bos].set(True)
    return _choose(Rows(context, none, none, said, draw), logits)


@jit("model", donate_argnames="rows")
def advance(model: VideoLlama, params: Tree, rows: Rows, wanted: jax.Array) -> Rows:
    """One more token of the rows that are ``wanted``, bool [B]; others stand still."""
    token, mask = rows.token[:, None], wanted[:, None]
    logits, context = decode.read(model, params, rows.context, token, mask)
    return _choose(rows._replace(context=context), logits)


@jit((), donate_argnames="rows")
def seat(rows: Rows, new: Rows, at: jax.Array) -> Rows:
    """Puts new rows in the places ``at``; a place that isn't there is for rows that nobody wants.

    A row of the new ones must have no more slots than one of the old.
    """

    def put(old: jax.Array, added: jax.Array) -> jax.Array:
        return old.at[at].set(added, mode="drop")

    def put_cache(old: Cache, added: Cache) -> Cache:
        L = added.values.shape[-2]
        return Cache(
            old.keys.at[at, ..., :L].set(added.keys, mode="drop"),
            old.values.at[at, :, :L].set(added.values, mode="drop"),
            jnp.maximum(old.next_slot, added.next_slot),
        )

    caches = zip(_apart(rows), _apart(new), strict=True)
    cache = tuple(put_cache(old, added) for old, added in caches)
    S, L = slots(rows.context.cache), slots(new.context.cache)
    seen = put(rows.context.seen, jnp.pad(new.context.seen, ((0, 0), (0, S - L))))
    context = Context(cache, seen, put(rows.context.length, new.context.length))
    rest = jax.tree.map(put, rows[1:], new[1:])
    return Rows(context, *rest)


@jit("room")
def arrange(rows: Rows, order: jax.Array, room: int) -> Rows:
    """Rows in another order, more or fewer of them, of ``room`` slots; the used ones move to front.

    What doesn't fit into ``room`` is lost: it must hold the longest of the rows.
    """
    seen = rows.context.seen[order]
    at = jnp.argsort(~seen, axis=1, stable=True)[:, :room]
    spare = room - at.shape[1]

    def pack(x: jax.Array, axis: int) -> jax.Array:
        index = at.reshape(at.shape[0], *(-1 if i == axis else 1 for i in range(1, x.ndim)))
        packed = jnp.take_along_axis(x[order], index, axis)
        return jnp.pad(packed, [(0, spare if i == axis else 0) for i in range(x.ndim)])

    length = rows.context.length[order]
    cache = tuple(Cache(pack(c.keys, 3), pack(c.values, 2), length.max()) for c in _apart(rows))
    context = Context(cache, jnp.arange(room) < length[:, None], length)
    rest = jax.tree.map(lambda x: x[order], rows[1:])
    return Rows(context, *rest)


def _apart(rows: Rows) -> tuple[Cache, ...]:
    cache = rows.context.cache
    assert not isinstance(cache, Cache), "an engine's layers are not stacked"
    return cache


def _choose(rows: Rows, logits: jax.Array) -> Rows:
    """By logits [B, V]."""
    logits = penalised(logits, rows.said, rows.draw.penalty[:, None])
    some = (rows.draw.temperature > 0).any()
    token = jax.lax.cond(some, _drawn, lambda rows, logits: likeliest(logits), rows, logits)
    said = rows.said.at[jnp.arange(len(token)), token].set(True)
    return rows._replace(token=token.astype(jnp.int32), chosen=rows.chosen + 1, said=said)


def _drawn(rows: Rows, logits: jax.Array) -> jax.Array:
    """A row's draws depend on its seed and on how many it has had, on no other row."""

    def one(seed: jax.Array, count: jax.Array, logits: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), count), logits)

    drawn = jax.vmap(one)(rows.draw.seed, rows.chosen, nucleus(logits, rows.draw))
    return jnp.where(rows.draw.temperature > 0, drawn, likeliest(logits))


def nucleus(logits: jax.Array, draw: Draw) -> jax.Array:
    """``sampling.filtered`` of logits [B, V], by each row's own temperature, top-k and top-p."""
    V = logits.shape[-1]
    temperature, top_k, top_p = (x[:, None] for x in (draw.temperature, draw.top_k, draw.top_p))
    logits = logits / jnp.where(temperature > 0, temperature, 1)
    ordered = jnp.sort(logits, axis=-1)[:, ::-1]
    among = jnp.arange(V) < jnp.where(top_k > 0, top_k, V)
    mass = jax.nn.softmax(jnp.where(among, ordered, -jnp.inf))
    # A token stays if what stands before it holds less than top_p: the first always does.
    stays = among & (jnp.cumsum(mass, axis=-1) - mass < top_p)
    lowest = jnp.where(stays, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits < lowest, -jnp.inf, logits)
