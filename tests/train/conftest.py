"""A model that compiles in seconds, and batches for it."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from vljax import store
from vljax.config import VISION
from vljax.data.text import IGNORE
from vljax.models.sizes import (
    TINY,
    ImageBindSize,
    LlamaSize,
    QFormerSize,
    SoundTowerSize,
    VideoLlamaSize,
    VisionTowerSize,
    ViTSize,
)
from vljax.train import partition
from vljax.train.objectives import make_objective
from vljax.train.step import Problem

_QFORMER = QFormerSize(queries=2, depth=2, encoder_width=16, width=16, heads=2, mlp=32, dropout=0.0)
SMALL = dataclasses.replace(
    TINY,
    name="small",
    llama=LlamaSize(vocab=48, width=32, depth=2, heads=4, kv_heads=4, mlp=64),
    vit=ViTSize(image=16, patch=8, width=16, depth=2, heads=2, mlp=32),
    qformer=_QFORMER,
    video_qformer=_QFORMER,
    audio_qformer=_QFORMER,
    imagebind=ImageBindSize(
        vision=VisionTowerSize(image=16, patch=8, width=16, depth=2, heads=2, mlp=32),
        sound=SoundTowerSize(
            seconds=1.0,
            mel_bins=32,
            mel_frames=96,
            kernel=8,
            stride=8,
            width=16,
            depth=1,
            heads=2,
            mlp=32,
            norm=1.0,
        ),
        out=16,
    ),
)


def media_batch(seed: int, size: int = 8, length: int = 10, frames: int = 2) -> dict:
    """Noise for frames; bos, two placeholders, words; some rows and clips are shorter."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, SMALL.llama.vocab, (size, length)).astype(np.int32)
    tokens[:, 0], tokens[:, 1:3] = 1, SMALL.llama.vocab
    mask = np.ones((size, length), bool)
    mask[::2, -2:] = False
    tokens[~mask] = 0
    labels = np.where(mask, tokens, IGNORE).astype(np.int32)
    labels[:, :3] = IGNORE
    side = SMALL.vit.image
    valid = np.ones((size, frames), bool)
    valid[1::4, -1] = False
    pixels = rng.integers(0, 256, (size, frames, side, side, 3), np.uint8)
    return {
        "frames": pixels,
        "frame_mask": valid,
        "tokens": tokens,
        "mask": mask,
        "labels": labels,
    }


@pytest.fixture(scope="package", autouse=True)
def fast_compiles():
    """Programs of this package run for milliseconds and would be optimised for seconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def small() -> VideoLlamaSize:
    return SMALL


@pytest.fixture(scope="session", name="media_batch")
def media_batch_fixture() -> Callable[..., dict]:
    return media_batch


@pytest.fixture(scope="session")
def small_run(small, tmp_path_factory) -> Iterator[list[str]]:
    """The command of small_run.py with frozen weights; {workdir} stands for the run's folder."""
    folder = tmp_path_factory.mktemp("frozen")
    problem = Problem(small, make_objective("vision"), VISION)
    _, tree = partition.split(nn.unbox(problem.abstract()), VISION)
    rng = np.random.default_rng(0)
    values = {n: rng.normal(0, 0.1, x.shape) for n, x in store.flatten(tree).items()}
    store.save(folder, store.unflatten(values), {}, np.float32)
    program = Path(__file__).with_name("small_run.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(program.parents[2]))
        yield [
            *(sys.executable, str(program), "{workdir}"),
            *("--frozen", str(folder), "--cache", str(folder / "cache")),
        ]


@pytest.fixture(scope="session")
def chaos():
    """launch/local/chaos.py"""
    path = str(Path(__file__).parents[2] / "launch" / "local")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        import chaos

        yield chaos
