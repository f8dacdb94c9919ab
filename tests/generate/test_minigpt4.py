"""The image path and one projection alone, as MiniGPT-4's: single images, the Q-Former's tokens."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from vljax.generate.engine import Engine, Request
from vljax.generate.media import Media
from vljax.generate.sampling import Sampling

SHORT = Sampling(max_new_tokens=8)
PARTS = ("frame_encoder", "video_proj", "llama")


@pytest.fixture(scope="module")
def minigpt4(engine) -> Engine:
    """Of the shared random model: neither frame positions nor a Video Q-Former, and no sound."""
    return dataclasses.replace(engine, params={n: engine.params[n] for n in PARTS})


def image(seed: int, frames: int = 1) -> Media:
    rng = np.random.default_rng(seed)
    return Media(rng.integers(0, 256, (frames, 48, 48, 3), np.uint8), None)


def test_an_image_is_the_projected_tokens_of_the_image_qformer(minigpt4):
    media = image(0)
    assert minigpt4.senses(True, False) == (True, False)
    ids = minigpt4.prompt_ids(Request("What is it?", media))
    assert ids.count(minigpt4.tokenizer.image_here) == minigpt4.size.qformer.queries
    pixels, params = media.frames[None], {"params": minigpt4.params}
    encode = jax.jit(functools.partial(minigpt4.model.apply, pixels=True, method="frame_tokens"))
    tokens = encode(params, pixels)[0, 0]
    dense = minigpt4.params["video_proj"]
    expected = np.asarray(tokens) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(minigpt4.encode([media])[0], expected, rtol=1e-3, atol=1e-4)


def test_it_answers_about_images_and_refuses_clips(minigpt4):
    both = minigpt4.encode([image(1), image(2)])
    assert not np.allclose(both[0], both[1], rtol=0.1)
    assert minigpt4.answer([Request("What?", image(1))], SHORT)[0]
    with pytest.raises(ValueError, match="clip: these weights understand single images"):
        minigpt4.answer([Request("What?", image(1, 8))], SHORT)
