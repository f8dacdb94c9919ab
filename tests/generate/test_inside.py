"""Where queries look: the weights made again are those that the model's own outputs come from."""

import jax
import numpy as np
import pytest

import vljax
from vljax.generate.chat import SAMPLE
from vljax.generate.inside import looks
from vljax.generate.media import Media, read_media


@pytest.fixture(scope="module")
def engine():
    return vljax.load("tiny").engine


@pytest.fixture(scope="module")
def media(engine):
    return read_media(SAMPLE, engine.size)


def test_the_weights_are_those_that_the_module_used(engine, media):
    """Values mixed by them and projected are what the cross-attention gave."""

    def run(model, frames):
        model.video_tokens(model.frame_tokens(frames, True))

    def wanted(module, method):
        return "video_qformer" in module.path and "cross_attention" in module.path

    @jax.jit
    def captured(params, frames):
        kept = {"capture_intermediates": wanted, "mutable": ["intermediates"]}
        return engine.model.apply({"params": params}, frames, method=run, **kept)[1]

    state = captured(engine.params, media.frames[None])
    group = state["intermediates"]["video_qformer"]["groups"]["layer_0"]["cross_attention"]
    params = engine.params["video_qformer"]["groups"]["layer_0"]["cross_attention"]["out"]
    values = group["value"]["__call__"][0][:, 0]  # [N, S, D]
    seen = looks(engine, media).frames
    N, H, Q, T, q = seen.shape
    values = np.asarray(values).reshape(N, T * q, H, -1)
    mixed = np.einsum("NHQS,NSHK->NQHK", seen.reshape(N, H, Q, T * q), values)
    made = mixed.reshape(N, Q, -1) @ params["kernel"] + params["bias"][:, None]
    np.testing.assert_allclose(made, group["__call__"][0][0][:, 0], atol=1e-5)


def test_shapes_and_sums(engine, media):
    found = looks(engine, media)
    assert found.patches.shape == (2, 4, 8, 4, 1 + 36)
    assert found.frames.shape == (2, 4, 8, 8, 4)
    assert found.clips.shape == (2, 4, 8, 8)
    for x, axes in ((found.patches, -1), (found.frames, (-2, -1)), (found.clips, -1)):
        np.testing.assert_allclose(x.sum(axes), 1, atol=1e-5)


def test_the_image_queries_look_at_the_thing_that_moves(engine, media):
    patches = looks(engine, media).patches[..., 1:].mean((0, 1, 3)).reshape(8, 6, 6)
    red, green, blue = np.moveaxis(media.frames.astype(int), -1, 0)
    cells = (green - np.maximum(red, blue) > 40).reshape(8, 6, 8, 6, 8).mean((2, 4))
    for look, cell in zip(patches, cells, strict=True):
        assert np.corrcoef(look.ravel(), cell.ravel())[0, 1] > 0.5


def test_of_one_frame_and_no_sound(engine, media):
    """What a file lacks is None; and each frame is looked at on its own."""
    found, whole = looks(engine, Media(media.frames[3:4], None)), looks(engine, media)
    assert found.clips is None and found.frames.shape[3] == 1
    np.testing.assert_allclose(found.patches, whole.patches[:, :, 3:4], atol=1e-5)
    found = looks(engine, Media(None, media.mel))
    assert found.patches is None and found.frames is None
    np.testing.assert_allclose(found.clips, whole.clips, atol=1e-5)
