"""The pre-norm transformer block that EVA's and ImageBind's towers share."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vljax.nn.attention import Attention
from vljax.nn.layers import LEAD, MLP, Axes, LayerNorm, constrain

EPS = 1e-6  # of both towers' block norms


class PreNormBlock(nn.Module):
    """``x += attention(norm1(x)); x += mlp(norm2(x))``: [B, S, D] -> [B, S, D]."""

    heads: int
    mlp: int
    biases: str = "qkvo"
    bias_kv: bool = False
    dtype: jnp.dtype = jnp.float32
    lead: Axes = LEAD

    @nn.compact
    def __call__(self, x: jax.Array, per_layer: None) -> tuple[jax.Array, None]:
        attention = Attention(
            self.heads,
            x.shape[-1],
            biases=self.biases,
            bias_kv=self.bias_kv,
            dtype=self.dtype,
            lead=self.lead,
            name="attention",
        )
        x = x + attention(LayerNorm(EPS, name="norm1")(x))[0]
        mlp = MLP(self.mlp, dtype=self.dtype, lead=self.lead, name="mlp")
        x = x + mlp(LayerNorm(EPS, name="norm2")(x))
        x = constrain(x, (*self.lead, "act_embed"))
        self.sow("intermediates", "out", x)
        return x, None
