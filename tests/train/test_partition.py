"""Two trees and back, the table, and misspelt regexes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.config import AUDIO, VISION
from vljax.models.sizes import TINY
from vljax.models.video_llama import abstract_parameters
from vljax.store import content_hash, flatten
from vljax.train import partition

PARAMS = {
    "video_proj": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.ones(3)},
    "video_qformer": {"layers": {"fc": {"kernel": np.full((2, 2), 7.0)}}},
    "frame_encoder": {"vit": {"w": np.zeros(5)}, "qformer": {"w": np.zeros(4)}},
    "log_scale": np.float32(3),
}


def test_split_by_name():
    trainable, frozen = partition.split(PARAMS, (r"video_proj/kernel", r"log_scale"))
    assert set(flatten(trainable)) == {"video_proj/kernel", "log_scale"}
    assert set(flatten(frozen)) == set(flatten(PARAMS)) - set(flatten(trainable))
    assert trainable["video_proj"]["kernel"] is PARAMS["video_proj"]["kernel"]


@pytest.mark.parametrize(
    "regexes", [(), (r".*",), (r"video_proj/bias",), (r"video_", r"frame_encoder/vit/")]
)
def test_merge_is_the_inverse_of_split(regexes):
    merged = partition.merge(*partition.split(PARAMS, regexes))
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert content_hash(merged) == content_hash(PARAMS)


def test_split_is_the_inverse_of_merge():
    first = partition.split(PARAMS, (r"video_",))
    again = partition.split(partition.merge(*first), (r"video_",))
    assert [set(flatten(t)) for t in again] == [set(flatten(t)) for t in first]


@pytest.mark.parametrize("regex", [r"vidoe_proj/", r"proj/", r"kernel"])
def test_a_regex_that_matches_nothing_raises(regex):
    with pytest.raises(ValueError, match=r"matches no parameter; there are frame_encoder, log_sc"):
        partition.split(PARAMS, (r"video_proj/", regex))


@pytest.mark.parametrize(
    ("regexes", "modules"),
    [
        (VISION, {"frame_position", "video_qformer", "video_proj"}),
        (AUDIO, {"audio_position", "audio_qformer", "audio_proj"}),
    ],
)
def test_each_branch_trains_its_own_modules(regexes, modules):
    trainable, frozen = partition.split(abstract_parameters(TINY), regexes)
    assert set(trainable) == modules
    assert not set(frozen) & modules
    assert {"llama", "frame_encoder", "imagebind"} <= set(frozen)


def test_table():
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    trainable, frozen = partition.split(half, (r"video_",))
    assert partition.table(trainable, frozen) == [
        ("frame_encoder/qformer", 4, 8, False),
        ("frame_encoder/vit", 5, 10, False),
        ("log_scale", 1, 2, False),
        ("video_proj", 9, 18, True),
        ("video_qformer", 4, 8, True),
    ]
    lines = partition.format_table(partition.table(trainable, frozen)).splitlines()
    assert lines[-2].split() == ["total", "13", "0.0", "trainable"]
    assert lines[-1].split() == ["total", "10", "0.0", "frozen"]
