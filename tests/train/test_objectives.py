"""Which media stand where in front of the language model."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.data.text import expand
from vljax.train import objectives

VOCAB, WIDTH = 4, 2
OWN, OTHER = VOCAB, VOCAB + 1  # ids of the two kinds of placeholder
ROWS = {
    "alone": [1, OWN, OWN, 2, 2, 2],
    "own, other": [1, OWN, OWN, OTHER, OTHER, 2],
    "other, own": [1, OTHER, OTHER, OWN, OWN, 2],
}


@dataclasses.dataclass
class Model:
    """Media tokens say whose they are: 0, 1, 2 seen by the rows, 10, 11, 12 heard."""

    size: types.SimpleNamespace = dataclasses.field(
        default_factory=lambda: types.SimpleNamespace(llama=types.SimpleNamespace(vocab=VOCAB))
    )

    def frame_tokens(self, frames, pixels):
        return jnp.arange(len(frames), dtype=jnp.float32)

    sight_features = frame_tokens

    def video_tokens(self, rows, mask, train=False):
        return jnp.broadcast_to(rows[:, None, None], (len(rows), 2, WIDTH))

    def audio_tokens(self, features, mask, train=False):
        rows = jnp.arange(len(features), dtype=jnp.float32) + 10
        return jnp.broadcast_to(rows[:, None, None], (len(rows), 2, WIDTH))

    def make_rng(self, name):
        return jax.random.key(0)

    def logits(self, tokens, mask, media):
        self.media = np.asarray(media[:, :, 0])
        return jnp.zeros((*tokens.shape, VOCAB))


@pytest.fixture
def batch():
    tokens = jnp.array(list(ROWS.values()))
    return {
        "tokens": tokens,
        "labels": jnp.where(tokens >= VOCAB, -100, tokens),
        "mask": jnp.ones(tokens.shape, bool),
        "frames": jnp.zeros((len(ROWS), 1, 2, 2, 3), jnp.uint8),
        "frame_mask": jnp.ones((len(ROWS), 1), bool),
    }


def used(model: Model, batch) -> list[list[float]]:
    """The media that placeholders were filled with: the n-th with the n-th."""
    counts = (np.asarray(batch["tokens"]) >= VOCAB).sum(1)
    return [row[:n].tolist() for row, n in zip(model.media, counts, strict=True)]


def test_vision_beside_another_rows_picture(batch):
    model = Model()
    objectives.vision(model, batch, distract=True)
    assert used(model, batch) == [[0, 0], [1, 1, 0, 0], [1, 1, 2, 2]]


def test_a_sound_beside_a_picture_and_a_picture_beside_a_sound(batch):
    model = Model()
    model.sight_features = lambda frames, pixels: jnp.zeros((len(frames), 1, 3))
    objectives.audio(model, batch, feature_noise=0.0, distract=True)
    assert used(model, batch) == [[10, 10], [11, 11, 0, 0], [11, 11, 2, 2]]


def test_what_is_another_rows_has_the_second_kind_of_placeholder():
    text = expand("You hear:<other>. You see:<image>?", 2, ("(", ")"))
    assert text == "You hear:<AudioHere><AudioHere>. You see:(<ImageHere><ImageHere>)?"


def test_noise_alike_is_one_offset_a_row():
    x = jnp.ones((3, 5, 4))
    offset = np.asarray(objectives._noisy(jax.random.key(1), x, 0.5, alike=True) - x)
    assert np.allclose(offset, offset[:, :1]) and np.abs(offset).min() > 0
    assert not np.allclose(offset[0], offset[1])
    apart = np.asarray(objectives._noisy(jax.random.key(1), x, 0.5) - x)
    assert not np.allclose(apart, apart[:, :1])
