"""Endless sources of the world's pretraining batches, for the same pipeline as files."""

import dataclasses
from collections.abc import Callable

import numpy as np

from vljax.data.audio import AudioSpec
from vljax.data.pipeline import HostBatch
from vljax.data.tokenizer import load_tokenizer
from vljax.data.world import pretrain


@dataclasses.dataclass(frozen=True)
class Generated:
    """A source whose batch is drawn anew from its generator: no record is met twice."""

    name: str
    batch_size: int
    make: Callable[[np.random.Generator, int], HostBatch]
    weight: float = 1.0

    def __len__(self) -> int:
        return self.batch_size

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> HostBatch:
        return self.make(rng, len(indices))


def world_source(name: str, batch_size: int, tokenizer: str, spec: AudioSpec) -> Generated:
    """ "text", "tags" or "pairs"; raises ValueError for another name."""
    if name == "text":
        words = load_tokenizer(tokenizer)
        return Generated(name, batch_size, lambda rng, n: pretrain.text_batch(rng, n, words))
    if name == "tags":
        return Generated(name, batch_size, pretrain.tags_batch)
    if name == "pairs":
        return Generated(name, batch_size, lambda rng, n: pretrain.pairs_batch(rng, n, spec))
    raise ValueError(f"world source: got {name!r}, expected text, tags or pairs")
