"""Attention: pure mask builders, rotary positions, and the one attention module of all towers."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vljax.nn.layers import LEAD, QKV, Axes, Dense, constrain, normal

NEGATIVE = -1e30  # finite, so that a fully masked row is an average and never NaN

KERNELS = ("xla", "cudnn")  # the second: NVIDIA's fused one, in half precision
_kernel: contextvars.ContextVar[str] = contextvars.ContextVar("kernel", default="xla")


@contextlib.contextmanager
def attending(kernel: str) -> Iterator[None]:
    """Within this context (around a trace) attention is computed by ``kernel``.

    Raises ValueError for one that does not exist. As with ``layers.constraining``, use a fresh
    ``jax.jit`` for each.
    """
    if kernel not in KERNELS:
        raise ValueError(f"attention: got {kernel!r}, expected one of {', '.join(KERNELS)}")
    token = _kernel.set(kernel)
    try:
        yield
    finally:
        _kernel.reset(token)


class Cache(NamedTuple):
    """Keys [B, G, K, S], values [B, G, S, K] seen so far, and the ``next_slot`` () to write.

    They lie as the products of a few queries want them; else every step would turn all of it.
    """

    keys: jax.Array
    values: jax.Array
    next_slot: jax.Array


Caches = Cache | tuple[Cache, ...]  # of all layers: stacked, with layers as first axis, or apart


def slots(cache: Caches) -> int:
    """How many positions a row has room for."""
    return (cache if isinstance(cache, Cache) else cache[0]).values.shape[-2]


def next_slot(cache: Caches) -> jax.Array:
    """() of the slot that is written next, the same in all layers."""
    return cache.next_slot[0] if isinstance(cache, Cache) else cache[0].next_slot


def take_rows(cache: Caches, rows: jax.Array) -> Caches:
    """The cache of some rows of a batch, in that order."""

    def take(x: jax.Array) -> jax.Array:
        return jnp.take(x, rows, axis=x.ndim - 4) if x.ndim >= 4 else x

    taken: Caches = jax.tree.map(take, cache)
    return taken


def causal_mask(valid: jax.Array) -> jax.Array:
    """valid [B, L] -> bool [B, L, L]: query row sees key column if it is valid and not later.

    For L = 3, all valid::

        1 0 0
        1 1 0
        1 1 1
    """
    length = valid.shape[1]
    return jnp.tril(jnp.ones((length, length), bool)) & valid[:, None, :].astype(bool)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """q [B, L, H, K], k and v [B, S, G, K] (G divides H), mask bool [B, L, S] -> [B, L, H, K].

    Scores are divided by sqrt(K); softmax in float32; ``drop`` is applied to its result (which a
    fused kernel does not show, so then it is never one).
    """
    if drop is None and _kernel.get() == "cudnn":
        mask = None if mask is None else mask[:, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    B, L, H, K = q.shape
    G = k.shape[2]
    q = q.reshape(B, L, G, H // G, K) * jnp.asarray(K**-0.5, q.dtype)
    scores = jnp.einsum("BLGRK,BSGK->BGRLS", q, k).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = weights if drop is None else drop(weights)
    return jnp.einsum("BGRLS,BSGK->BLGRK", weights.astype(v.dtype), v).reshape(B, L, H, K)


def attend_slots(q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array) -> jax.Array:
    """q [B, L, H, K], keys [B, G, K, S], values [B, G, S, K], mask bool [B, L, S] -> as q.

    ``attend`` over a cache as it lies: with few queries XLA:CPU is fast only where the products'
    left side are these, and nothing has to be turned around.
    """
    B, L, H, K = q.shape
    G, S = values.shape[1:3]
    q = q.reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B, G, -1, K)
    scores = (q * jnp.asarray(K**-0.5, q.dtype)) @ keys
    scores = scores.astype(jnp.float32).reshape(B, G, H // G, L, S)
    scores = jnp.where(mask[:, None, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    y = (weights.reshape(B, G, -1, S) @ values).reshape(B, G, H // G, L, K)
    return y.transpose(0, 3, 1, 2, 4).reshape(B, L, H, K)


class Rotary(NamedTuple):
    """Cosines and sines [B, L, 1, K / 2] of the angles that rows' heads are turned by."""

    cos: jax.Array
    sin: jax.Array


def rotary(positions: jax.Array, head_dim: int, base: float) -> Rotary:
    """Of positions [B, L], in the half-rotation layout; once for all layers.

    Behind a barrier, since XLA:CPU would rather make them anew for each head of each layer.
    """
    half = head_dim // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    return jax.lax.optimization_barrier(Rotary(jnp.cos(angle), jnp.sin(angle)))


def rotate(x: jax.Array, turn: Rotary) -> jax.Array:
    """x [B, L, H, K] with rotary positions, in the half-rotation layout."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = a * turn.cos - b * turn.sin, b * turn.cos + a * turn.sin
    return jnp.concatenate(turned, -1).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head attention of every tower; what differs between them is a field.

    Attributes:
      heads, kv_heads: query heads and key/value heads (grouped queries when fewer).
      width: q and k width, ``heads * head_dim``; the output has the input's width.
      biases: which of "q", "k", "v", "o" carry a bias (EVA: no "k"; LLaMA: none).
      bias_kv: one learned extra key and value at the end of the sequence (ImageBind audio).
      dropout: rate on the attention weights, in training.
      lead: names of the first two axes of x; a split L meets keys and values that are gathered.
    """

    heads: int
    width: int
    kv_heads: int | None = None
    biases: str = "qkvo"
    bias_kv: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    lead: Axes = LEAD

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        source: jax.Array | None = None,
        mask: jax.Array | None = None,
        turn: Rotary | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Cache | None]:
        """x [B, L, D] attends to source [B, S, E] (default x); returns [B, L, D] and the cache.

        ``turn`` is of rotary positions, if there are any. With a cache, this call's keys and values
        are written at ``cache.next_slot`` and ``mask`` is over all of the cache's slots.
        """
        source = x if source is None else source
        head_dim = self.width // self.heads
        kv_heads = self.kv_heads or self.heads

        def project(y: jax.Array, name: str, heads: int, axis: str) -> jax.Array:
            dense = Dense(
                heads * head_dim,
                ("embed", axis),
                use_bias=name[0] in self.biases,
                dtype=self.dtype,
                name=name,
            )
            y = dense(y).reshape(*y.shape[:2], heads, head_dim)
            return constrain(y, (*self.lead, "act_heads", None))

        if self.has_variable("params", QKV):
            y = project(x, QKV, self.heads + 2 * kv_heads, "heads")
            q, k, v = jnp.split(y, (self.heads, self.heads + kv_heads), axis=2)
        else:
            q = project(x, "query", self.heads, "heads")
            k = project(source, "key", kv_heads, "kv_heads")
            v = project(source, "value", kv_heads, "kv_heads")
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        q, k, v = (checkpoint_name(y, "qkv") for y in (q, k, v))
        k, v = (constrain(y, (self.lead[0], None, "act_heads", None)) for y in (k, v))
        if cache is not None:
            at, update = cache.next_slot, jax.lax.dynamic_update_slice_in_dim
            k = update(cache.keys, k.transpose(0, 2, 3, 1), at, 3)
            v = update(cache.values, v.swapaxes(1, 2), at, 2)
            cache = Cache(k, v, at + x.shape[1])
            assert mask is not None and not self.bias_kv, "a cache's slots are masked"
            y = attend_slots(q, k, v, mask)
        else:
            if self.bias_kv:
                k, v = (self._append(y, f"bias_{n}") for y, n in ((k, "k"), (v, "v")))
            drop = nn.Dropout(self.dropout, deterministic=False) if self.dropout and train else None
            y = attend(q, k, v, mask, drop)
        out = Dense(
            x.shape[-1],
            ("heads", "embed"),
            use_bias="o" in self.biases,
            dtype=self.dtype,
            name="out",
        )
        y = out(y.reshape(*x.shape[:2], self.width))
        return checkpoint_name(y, "attended"), cache

    def _append(self, y: jax.Array, name: str) -> jax.Array:
        row = self.param(name, normal(0.02, ("heads",)), (self.width,)).astype(y.dtype)
        row = jnp.broadcast_to(row.reshape(1, 1, *y.shape[2:]), (y.shape[0], 1, *y.shape[2:]))
        return jnp.concatenate([y, row], axis=1)
