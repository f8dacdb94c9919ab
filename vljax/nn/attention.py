"""Attention: pure mask builders, rotary positions, and the one attention module of all towers."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vljax.nn.layers import LEAD, Axes, Dense, constrain, normal

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
    """Keys and values [B, G, S, K] seen so far, and the ``next_slot`` () to write.

    Heads come before slots, as the two products over the slots want them; in [B, S, G, K] every
    step would turn the whole of it around.
    """

    keys: jax.Array
    values: jax.Array
    next_slot: jax.Array


Caches = Cache | tuple[Cache, ...]  # of all layers: stacked, with layers as first axis, or apart


def slots(cache: Caches) -> int:
    """How many positions a row has room for."""
    return (cache if isinstance(cache, Cache) else cache[0]).keys.shape[-2]


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


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary positions in the half-rotation layout. x [B, L, H, K], positions [B, L]."""
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head attention of every tower; what differs between them is a field.

    Attributes:
      heads, kv_heads: query heads and key/value heads (grouped queries when fewer).
      width: q and k width, ``heads * head_dim``; the output has the input's width.
      biases: which of "q", "k", "v", "o" carry a bias (EVA: no "k"; LLaMA: none).
      bias_kv: one learned extra key and value at the end of the sequence (ImageBind audio).
      rope_base: rotary base, or None for no rotary positions.
      dropout: rate on the attention weights, in training.
      lead: names of the first two axes of x; a split L meets keys and values that are gathered.
    """

    heads: int
    width: int
    kv_heads: int | None = None
    biases: str = "qkvo"
    bias_kv: bool = False
    rope_base: float | None = None
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    lead: Axes = LEAD

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        source: jax.Array | None = None,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, Cache | None]:
        """x [B, L, D] attends to source [B, S, E] (default x); returns [B, L, D] and the cache.

        With a cache, this call's keys and values are written at ``cache.next_slot`` and ``mask`` is
        over all of the cache's slots.
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

        q = project(x, "query", self.heads, "heads")
        k = project(source, "key", kv_heads, "kv_heads")
        v = project(source, "value", kv_heads, "kv_heads")
        if self.rope_base is not None:
            assert positions is not None, "rotary attention needs positions"
            q, k = (rotate(y, positions, self.rope_base) for y in (q, k))
        q, k, v = (checkpoint_name(y, "qkv") for y in (q, k, v))
        k, v = (constrain(y, (self.lead[0], None, "act_heads", None)) for y in (k, v))
        if cache is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, y.swapaxes(1, 2), cache.next_slot, 2)
                for old, y in ((cache.keys, k), (cache.values, v))
            )
            cache = Cache(k, v, cache.next_slot + x.shape[1])
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        if self.bias_kv:
            k, v = (self._append(y, f"bias_{n}") for y, n in ((k, "k"), (v, "v")))
        drop = nn.Dropout(self.dropout, deterministic=False) if self.dropout and train else None
        y = attend(q, k, v, mask, drop).reshape(*x.shape[:2], self.width)
        out = Dense(
            x.shape[-1],
            ("heads", "embed"),
            use_bias="o" in self.biases,
            dtype=self.dtype,
            name="out",
        )
        return checkpoint_name(out(y), "attended"), cache

    def _append(self, y: jax.Array, name: str) -> jax.Array:
        row = self.param(name, normal(0.02, ("heads",)), (self.width,)).astype(y.dtype)
        row = jnp.broadcast_to(row.reshape(1, 1, *y.shape[2:]), (y.shape[0], 1, *y.shape[2:]))
        return jnp.concatenate([y, row], axis=1)
