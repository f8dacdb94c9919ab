"""A model of the tiny one's parts that is smaller still, for what is about data and not answers."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import numpy as np

from vljax import store
from vljax.models.sizes import TINY, ImageBindSize, QFormerSize
from vljax.models.video_llama import abstract_parameters

SIZE = dataclasses.replace(
    TINY,
    llama=dataclasses.replace(TINY.llama, vocab=430, width=32, depth=1, mlp=32),
    vit=dataclasses.replace(TINY.vit, image=16, width=16, depth=1, mlp=16),
    qformer=QFormerSize(2, 1, 16, width=16, heads=2, mlp=16),
    video_qformer=QFormerSize(8, 1, 16, width=16, heads=2, mlp=16),
    audio_qformer=QFormerSize(8, 1, 8, width=16, heads=2, mlp=16),
    imagebind=ImageBindSize(
        vision=dataclasses.replace(TINY.imagebind.vision, image=16, width=16, depth=1, mlp=16),
        sound=dataclasses.replace(TINY.imagebind.sound, width=16, depth=1, heads=2, mlp=16),
        out=8,
    ),
)


def random_weights(folder: Path, seed: int = 0) -> Path:
    """Noise; what hears is the same whatever the seed."""
    shapes = store.flatten(nn.unbox(abstract_parameters(SIZE)))
    rng, same = np.random.default_rng(seed), np.random.default_rng(7)
    values = {
        n: (same if "sound" in n else rng).normal(0, 0.1, x.shape).astype(np.float32)
        for n, x in shapes.items()
    }
    store.save(folder, store.unflatten(values), {})
    return folder
