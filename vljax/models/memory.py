"""What lets more frames in than a position table has rows: stretched tables, merged frames."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def stretched(table: jax.Array, count: int) -> jax.Array:
    """Positions [R, D] drawn out over ``count`` rows, linearly interpolated: [count, D].

    Row i is that of its moment, i * R / count: of every R-th part of a clip the first frame has
    the position that it has where R frames are sampled. What comes after the last row stays there.
    """
    rows = table.shape[0]
    at = jnp.minimum(jnp.arange(count) * (rows / count), rows - 1)
    low = jnp.minimum(at.astype(int), max(rows - 2, 0))
    part = (at - low)[:, None].astype(table.dtype)
    return table[low] * (1 - part) + table[jnp.minimum(low + 1, rows - 1)] * part


class Memory(NamedTuple):
    """A bounded memory of an unbounded row of frames, in the order of time.

    Attributes:
      entries: [N, Q, D], each the mean of ``weights`` [N] consecutive frames; weight 0 is an empty
        place, and those come last.
      times: [N], the mean of those frames' times.
    """

    entries: jax.Array
    weights: jax.Array
    times: jax.Array


def blank(places: int, tokens: int, width: int) -> Memory:
    """A memory that holds nothing yet."""
    nothing = jnp.zeros(places)
    return Memory(jnp.zeros((places, tokens, width)), nothing, nothing)


def remember(memory: Memory, frames: jax.Array, times: jax.Array, valid: jax.Array) -> Memory:
    """Adds frames [T, Q, D] at times [T], one after the other; those not ``valid`` [T] are not.

    Where no place is left, of all neighbours the two most alike become one, the mean of the frames
    that both stand for. Likeness is the cosine of their tokens, averaged (MovieChat, section 3.3).
    """

    def step(memory: Memory, new: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Memory, None]:
        frame, time, there = new
        grown = _put(memory, frame, time)
        return jax.tree.map(lambda a, b: jnp.where(there, a, b), grown, memory), None

    return jax.lax.scan(step, memory, (frames.astype(jnp.float32), times, valid))[0]


def _put(memory: Memory, frame: jax.Array, time: jax.Array) -> Memory:
    places = len(memory.weights)
    used = (memory.weights > 0).sum()
    room = Memory(*(jnp.concatenate([x, jnp.zeros_like(x[:1])]) for x in memory))
    longer = Memory(
        room.entries.at[used].set(frame),
        room.weights.at[used].set(1),
        room.times.at[used].set(time),
    )
    merged = _merge(longer, _likeness(longer.entries).argmax())
    return jax.tree.map(lambda a, b: jnp.where(used < places, a[:places], b), longer, merged)


def _likeness(entries: jax.Array) -> jax.Array:
    """[N, Q, D] -> [N - 1]: how like each entry is to the next."""
    unit = entries / jnp.maximum(jnp.linalg.norm(entries, axis=-1, keepdims=True), 1e-6)
    return (unit[:-1] * unit[1:]).sum(-1).mean(-1)


def _merge(memory: Memory, at: jax.Array) -> Memory:
    """Entries ``at`` and ``at`` + 1 become one: a place less."""
    place = jnp.arange(len(memory.weights) - 1)
    kept = place + (place > at)
    first, second = memory.weights[at], memory.weights[at + 1]
    share = second / (first + second)

    def mean(x: jax.Array) -> jax.Array:
        return x[kept].at[at].set(x[at] * (1 - share) + x[at + 1] * share)

    weights = memory.weights[kept].at[at].set(first + second)
    return Memory(mean(memory.entries), weights, mean(memory.times))
