"""LLaMA: RMSNorm, rotary positions, SwiGLU; works on embeddings, so that media can be spliced."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vljax.models.sizes import LlamaSize
from vljax.nn.attention import Attention, Cache, Caches, Rotary, causal_mask, rotary
from vljax.nn.layers import Dense, GatedMLP, RMSNorm, Table, by_columns, constrain
from vljax.nn.stack import Apart, stack

LEAD = ("batch", "act_seq")  # of [B, L, ...]


class Llama(nn.Module):
    """Torch: ``llama_model``. Call ``embed``, then the module, then ``logits``.

    ``apart``: layers are not stacked, neither their parameters (``stack.take_apart``) nor caches.
    """

    size: LlamaSize
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    apart: bool = False

    def setup(self) -> None:
        s = self.size
        self.tokens = Table(s.vocab, s.width, axes=("vocab", "embed"))
        fields: dict[str, Any] = {"size": s, "dtype": self.dtype}
        self.stack: nn.Module = (
            Apart(Block, s.depth, fields, name="layers")
            if self.apart
            else stack(Block, s.depth, shared=2, remat=self.remat, name="layers", **fields)
        )
        self.norm = RMSNorm(s.eps)
        if not s.tied:
            self.head = Dense(s.vocab, ("embed", "vocab"), use_bias=False, dtype=self.dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """tokens [B, L] -> [B, L, D]."""
        x = constrain(self.tokens()[tokens].astype(self.dtype), ("batch", None, "act_lookup"))
        return constrain(x, (*LEAD, "act_embed"))

    def __call__(
        self,
        embeddings: jax.Array,
        mask: jax.Array,
        positions: jax.Array | None = None,
        cache: Caches | None = None,
    ) -> tuple[jax.Array, Caches | None]:
        """embeddings [B, L, D] -> hidden states [B, L, D], normed, and the cache.

        Without a cache ``mask`` [B, L] says which positions are not padding, and attention is
        causal. With one (``empty_cache``) ``mask`` is bool [B, L, S] over the cache's slots.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(embeddings.shape[1]), embeddings.shape[:2])
        if cache is None:
            mask = causal_mask(mask)
        x = constrain(embeddings, (*LEAD, "act_embed"))
        turn = rotary(positions, self.size.width // self.size.heads, self.size.rope_base)
        x, cache = self.stack(x, cache, mask, turn)
        return self.norm(x), cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[B, L, D] -> float32 [B, L, V]."""
        if self.size.tied:
            y = by_columns(hidden, self.tokens(), answering=self.apart)
        else:
            y = self.head(hidden)
        return constrain(y, (*LEAD, "act_vocab")).astype(jnp.float32)

    def empty_cache(self, batch: int, slots: int) -> Caches:
        """A cache of ``slots`` positions a row, with nothing in it."""
        s = self.size
        head_dim = s.width // s.heads

        def zeros(*shape: int) -> jax.Array:
            x = jnp.zeros((*shape[:-2], batch, s.kv_heads, *shape[-2:]), self.dtype)
            return constrain(x, (*[None] * (x.ndim - 4), "batch", "act_heads", None, None))

        def empty(*lead: int) -> Cache:
            at = jnp.zeros(lead, jnp.int32)
            return Cache(zeros(*lead, head_dim, slots), zeros(*lead, slots, head_dim), at)

        return tuple(empty() for _ in range(s.depth)) if self.apart else empty(s.depth)


class Block(nn.Module):
    """``x += attention(norm(x)); x += mlp(norm(x))``."""

    size: LlamaSize
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: Cache | None, mask: jax.Array, turn: Rotary
    ) -> tuple[jax.Array, Cache | None]:
        s = self.size
        x = checkpoint_name(x, "layer_in")
        attention = Attention(
            s.heads,
            s.width,
            s.kv_heads,
            biases="",
            dtype=self.dtype,
            lead=LEAD,
            name="attention",
        )
        h = RMSNorm(s.eps, name="attention_norm")(x)
        y, cache = attention(h, mask=mask, turn=turn, cache=cache)
        x = x + y
        h = RMSNorm(s.eps, name="mlp_norm")(x)
        x = x + GatedMLP(s.mlp, dtype=self.dtype, lead=LEAD, name="mlp")(h)
        return constrain(x, (*LEAD, "act_embed")), cache
