"""EVA-CLIP's ViT: the residual stream of all tokens, without a final norm."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vljax.models.sizes import ViTSize
from vljax.nn.block import PreNormBlock
from vljax.nn.layers import LEAD, Axes, PatchConv, Table, normal
from vljax.nn.stack import stack

# CLIP's mean and standard deviation a channel, of pixels in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(frames: jax.Array) -> jax.Array:
    """Pixels 0 to 255 [..., 3] -> float32, as the towers want them. On the device: bytes travel."""
    return (frames.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


class EvaViT(nn.Module):
    """images [B, image, image, 3], normalised -> [B, 1 + P, D], class token first.

    Torch: ``visual_encoder``. Attention has query and value biases but no key bias; exact GELU;
    norms with eps 1e-6; learned positions, the class token's included.
    """

    size: ViTSize
    dtype: jnp.dtype = jnp.float32
    lead: Axes = LEAD

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        s = self.size
        if images.shape[1:] != (s.image, s.image, 3):
            raise ValueError(
                f"images: got shape {images.shape}, expected [B, {s.image}, {s.image}, 3]"
            )
        x = PatchConv(s.width, s.patch, s.patch, dtype=self.dtype, name="patch")(images)
        self.sow("intermediates", "patches", x)
        x = with_class_token(self, x)
        x = x + Table(x.shape[1], s.width, name="position")().astype(x.dtype)
        self.sow("intermediates", "positioned", x)
        fields: dict[str, Any] = dict(heads=s.heads, mlp=s.mlp, biases="qvo", lead=self.lead)
        return stack(PreNormBlock, s.depth, dtype=self.dtype, **fields)(x, None)[0]


def with_class_token(module: nn.Module, x: jax.Array) -> jax.Array:
    """Prepends ``module``'s learned ``class_token`` [D] to tokens [B, P, D]."""
    token = module.param("class_token", normal(0.02, ("embed",)), x.shape[-1:])
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([token, x], axis=1)
