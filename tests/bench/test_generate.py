"""Kernels that are read as one: the same model, and the same one for PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.generate import loading
from vljax.models.sizes import TINY
from vljax.models.video_llama import VideoLlama
from vljax.store import unflatten


@pytest.fixture(scope="module")
def both():
    """A language model's parameters one by one, and joined."""
    held = loading.held(TINY, "float32", (), None, lambda name: name.startswith("llama/"))
    rng = np.random.default_rng(0)
    drawn = {n: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype) for n, x in held.items()}
    return unflatten(drawn), unflatten(loading.joined(dict(drawn)))


def test_joined_kernels_compute_the_same(both):
    apart, joined = both
    assert set(joined["llama"]["layers"]["0"]["attention"]) == {"query_key_value", "out"}
    assert set(joined["llama"]["layers"]["0"]["mlp"]) == {"gate_up", "down"}
    count = [sum(x.size for x in jax.tree.leaves(tree)) for tree in both]
    assert count[0] == count[1]
    x = jax.random.normal(jax.random.key(0), (2, 7, TINY.llama.width))
    model, mask = VideoLlama(TINY, apart=True), jnp.ones((2, 7), bool)
    hidden = [
        model.apply({"params": tree}, x, mask, method=lambda m, *args: m.llama(*args)[0])
        for tree in (apart, joined)
    ]
    np.testing.assert_allclose(*hidden, atol=1e-5, rtol=1e-5)


def test_pytorch_is_given_the_same(both):
    pytest.importorskip("torch")
    from vljax.bench.hugging_face_generate import state_of

    apart, joined = (state_of(tree["llama"]) for tree in both)
    assert apart.keys() == joined.keys()
    assert all(apart[name].equal(joined[name]) for name in apart)
