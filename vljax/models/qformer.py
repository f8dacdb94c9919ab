"""The Q-Former: learned queries in a BERT trunk that read an encoder by cross-attention.

One module, used three times: over image patches (BLIP-2's), over frame tokens, over sound clips.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vljax.models.sizes import QFormerSize
from vljax.nn.attention import Attention
from vljax.nn.layers import LEAD, Axes, Dense, LayerNorm, constrain, normal
from vljax.nn.stack import stack

EPS = 1e-12  # BERT's


class QFormer(nn.Module):
    """encoder [B, S, E], mask bool [B, S] or None -> [B, Q, D].

    Torch: ``Qformer.bert`` with its ``query_tokens``, text parts removed. Post-norm, exact GELU.
    Layers ``0, cross_every, 2 * cross_every, ...`` cross-attend, so whole groups of ``cross_every``
    layers are scanned and what remains is a ``tail``.
    """

    size: QFormerSize
    dtype: jnp.dtype = jnp.float32
    lead: Axes = LEAD

    @nn.compact
    def __call__(
        self, encoder: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        s = self.size
        queries = self.param("queries", normal(0.02, ("rows", "embed")), (s.queries, s.width))
        x = LayerNorm(EPS, name="norm")(queries.astype(self.dtype))
        x = jnp.broadcast_to(x, (encoder.shape[0], *x.shape))
        x = nn.Dropout(s.dropout, deterministic=not train)(x)
        self.sow("intermediates", "embedded", x)
        if mask is not None:
            mask = jnp.broadcast_to(mask[:, None], (mask.shape[0], s.queries, mask.shape[1]))
        groups, remainder = divmod(s.depth, s.cross_every)
        fields: dict[str, Any] = dict(size=s, train=train, dtype=self.dtype, lead=self.lead)
        if groups:
            scanned = stack(Group, groups, shared=2, name="groups", layers=s.cross_every, **fields)
            x, _ = scanned(x, None, encoder, mask)
        if remainder:
            x, _ = Group(layers=remainder, name="tail", **fields)(x, None, encoder, mask)
        return x


class Group(nn.Module):
    """A cross-attending layer followed by ``layers - 1`` that only see the queries."""

    size: QFormerSize
    layers: int
    train: bool = False
    dtype: jnp.dtype = jnp.float32
    lead: Axes = LEAD

    @nn.compact
    def __call__(
        self, x: jax.Array, per_layer: None, encoder: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, None]:
        for i in range(self.layers):
            layer = Layer(self.size, i == 0, self.train, self.dtype, self.lead, name=f"layer_{i}")
            x = layer(x, encoder, mask)
        return x, None


class Layer(nn.Module):
    """BERT's layer: self-attention, cross-attention if ``cross``, MLP; each added, then normed."""

    size: QFormerSize
    cross: bool
    train: bool = False
    dtype: jnp.dtype = jnp.float32
    lead: Axes = LEAD

    @nn.compact
    def __call__(self, x: jax.Array, encoder: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = self._add_norm(x, self._attention("attention", x), "attention_norm")
        if self.cross:
            read = self._attention("cross_attention", x, encoder, mask)
            x = self._add_norm(x, read, "cross_attention_norm")
        h = Dense(self.size.mlp, ("embed", "mlp"), dtype=self.dtype, name="fc1")(x)
        h = constrain(jax.nn.gelu(h, approximate=False), (*self.lead, "act_mlp"))
        h = Dense(self.size.width, ("mlp", "embed"), dtype=self.dtype, name="fc2")(h)
        x = self._add_norm(x, h, "mlp_norm")
        self.sow("intermediates", "out", x)
        return x

    def _attention(
        self,
        name: str,
        x: jax.Array,
        source: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        s = self.size
        fields: dict[str, Any] = dict(dropout=s.dropout, dtype=self.dtype, lead=self.lead)
        module = Attention(s.heads, s.width, name=name, **fields)
        return module(x, source, mask, train=self.train)[0]

    def _add_norm(self, x: jax.Array, y: jax.Array, name: str) -> jax.Array:
        y = nn.Dropout(self.size.dropout, deterministic=not self.train)(y)
        return constrain(LayerNorm(EPS, name=name)(y + x), (*self.lead, "act_embed"))
