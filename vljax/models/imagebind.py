"""ImageBind's vision and sound towers: one shared space, so that pictures can stand for sounds."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vljax.models.eva_vit import normalise, with_class_token
from vljax.models.sizes import ImageBindSize, SoundTowerSize, VisionTowerSize
from vljax.nn.block import EPS, PreNormBlock
from vljax.nn.layers import Dense, LayerNorm, PatchConv, Table
from vljax.nn.stack import over_frames, stack

STEM_EPS = 1e-5  # of the sound stem's norm
LEAD = ("frames", None)  # of [N, P, ...]


class ImageBind(nn.Module):
    """Torch: ``audio_encoder``, of whose modalities vision and audio are built."""

    size: ImageBindSize
    dtype: jnp.dtype = jnp.float32
    frame_chunk: int = 0

    def setup(self) -> None:
        self.vision = VisionTower(self.size.vision, self.size.out, self.dtype)
        self.sound = SoundTower(self.size.sound, self.size.out, self.dtype)

    def see(self, images: jax.Array, pixels: bool = False) -> jax.Array:
        """images [B, T, image, image, 3] -> [B, T, out], each of length 1.

        ``pixels``: images are uint8 and not yet normalised.
        """

        def encode(tower: nn.Module, x: jax.Array) -> jax.Array:
            return tower(normalise(x) if pixels else x)

        return over_frames(self.vision, encode, images, self.frame_chunk)

    def hear(self, mel: jax.Array) -> jax.Array:
        """mel [B, T, mel_bins, mel_frames], normalised -> [B, T, out], each of length ``norm``."""

        def encode(tower: nn.Module, x: jax.Array) -> jax.Array:
            return tower(x)

        heard = over_frames(self.sound, encode, mel, self.frame_chunk)
        return heard * self.size.sound.norm


class VisionTower(nn.Module):
    """images [B, image, image, 3] -> [B, out] of length 1. A norm before the trunk."""

    size: VisionTowerSize
    out: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        s = self.size
        stem = PatchConv(
            s.width, s.patch, s.patch, s.temporal, use_bias=False, dtype=self.dtype, name="stem"
        )
        x = stem(images)
        self.sow("intermediates", "stem_out", x)
        x = with_class_token(self, x)
        x = x + Table(x.shape[1], s.width, name="position")().astype(x.dtype)
        x = LayerNorm(EPS, name="norm")(x)
        fields: dict[str, Any] = dict(heads=s.heads, mlp=s.mlp, dtype=self.dtype, lead=LEAD)
        x = stack(PreNormBlock, s.depth, **fields)(x, None)[0]
        return Head(self.out, self.dtype, name="head")(x)


class SoundTower(nn.Module):
    """mel [B, mel_bins, mel_frames] -> [B, out] of length 1. An extra key and value a block."""

    size: SoundTowerSize
    out: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, mel: jax.Array) -> jax.Array:
        s = self.size
        stem = PatchConv(s.width, s.kernel, s.stride, use_bias=False, dtype=self.dtype, name="stem")
        x = LayerNorm(STEM_EPS, name="stem_norm")(stem(mel[..., None]))
        self.sow("intermediates", "stem_out", x)
        x = with_class_token(self, x)
        x = x + Table(x.shape[1], s.width, name="position")().astype(x.dtype)
        fields: dict[str, Any] = dict(heads=s.heads, mlp=s.mlp, bias_kv=True, lead=LEAD)
        x = stack(PreNormBlock, s.depth, dtype=self.dtype, **fields)(x, None)[0]
        return Head(self.out, self.dtype, name="head")(x)


class Head(nn.Module):
    """Tokens [B, S, D] -> the class token, normed, projected and scaled to length 1: [B, out]."""

    out: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = LayerNorm(EPS, name="norm")(x)[:, 0]
        self.sow("intermediates", "pooled", x)
        project = Dense(self.out, ("embed", "joint"), use_bias=False, dtype=self.dtype, name="proj")
        x = project(x).astype(jnp.float32)
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
