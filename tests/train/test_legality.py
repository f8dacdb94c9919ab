"""What does not fit on a mesh is told in a sentence, with what would."""

import dataclasses
import logging

import pytest

from vljax.config import VISION
from vljax.models.sizes import video_llama_size
from vljax.sharding.strategy import strategy
from vljax.train.legality import require_legal
from vljax.train.objectives import make_objective
from vljax.train.step import Problem

BIG, SMOLLM2 = video_llama_size(), video_llama_size("135m", "smollm2_135m")


def sizes(name: str, devices: int, size=BIG, batch: int = 32, accumulate: int = 1, **known):
    problem = Problem(size, make_objective("vision"), VISION, accumulate=accumulate)
    return require_legal(problem, strategy(name), devices, batch_sizes={"clips": batch}, **known)


@pytest.mark.parametrize(
    ("name", "devices", "known", "mesh"),
    [
        ("dp", 8, {}, {"data": 8}),
        ("fsdp", 16, {"slices": 2}, {"data": 2, "fsdp": 8}),
        ("fsdp_tp:tensor=4", 8, {}, {"data": 1, "fsdp": 2, "tensor": 4}),
        ("tp:tensor=4", 8, {}, {"data": 2, "tensor": 4}),  # data takes the rest
        ("fsdp_sp:seq=4", 16, {"lengths": (32, 640)}, {"data": 1, "fsdp": 4, "seq": 4}),
        ("tp", 3, {"size": SMOLLM2}, {"data": 1, "tensor": 3}),
    ],
)
def test_what_is_legal(name, devices, known, mesh):
    assert sizes(name, devices, **known) == mesh


@pytest.mark.parametrize(
    ("name", "devices", "known", "sentence"),
    [
        (
            "tp",
            8,
            {"size": SMOLLM2},
            "sharding tp on 8 devices: tensor=8 does not divide 9 heads of 135m's LLM and tensor=8 "
            "does not divide its 3 heads of keys and values; legal here: tp:data=8:tensor=1",
        ),
        (
            "fsdp_tp",
            12,
            {"size": SMOLLM2, "batch": 48},
            "sharding fsdp_tp on 12 devices: tensor=2 does not divide 9 heads of 135m's LLM and "
            "tensor=2 does not divide its 3 heads of keys and values; legal here: "
            "fsdp_tp:data=1:fsdp=4:tensor=3, fsdp_tp:data=2:fsdp=2:tensor=3, "
            "fsdp_tp:data=4:fsdp=1:tensor=3",
        ),
        (
            "fsdp",
            256,
            {},
            "sharding fsdp on 256 devices: fsdp=256 does not divide source clips's batch of 32; "
            "legal here: tp:data=8:tensor=32, fsdp_tp:data=1:fsdp=32:tensor=8, "
            "dp_tp:data=32:tensor=8, fsdp_sp:data=1:fsdp=32:seq=8",
        ),
        (
            "fsdp:data=1",
            16,
            {"slices": 2},
            "sharding fsdp:data=1 on 16 devices: data=1 is no multiple of the 2 slices; legal "
            "here: fsdp:data=2:fsdp=8, fsdp:data=4:fsdp=4, fsdp:data=8:fsdp=2",
        ),
        (
            "fsdp_sp:seq=64",
            64,
            {"lengths": (32, 64)},
            "sharding fsdp_sp:seq=64 on 64 devices: seq=64 does not divide rows of 32 tokens; "
            "legal here: fsdp_sp:data=1:fsdp=2:seq=32, fsdp_sp:data=2:fsdp=1:seq=32, "
            "fsdp_sp:data=1:fsdp=4:seq=16",
        ),
        (
            "fsdp_tp:tensor=16:data=4",
            32,
            {},
            "sharding fsdp_tp:tensor=16:data=4 on 32 devices: got 32 devices, expected a multiple "
            "of 64; legal here: fsdp_tp:data=2:fsdp=1:tensor=16, fsdp_tp:data=4:fsdp=1:tensor=8, "
            "fsdp_tp:data=1:fsdp=2:tensor=16",
        ),
        (
            "dp",
            8,
            {"accumulate": 8},
            "sharding dp on 8 devices: data=8 does not divide source clips's batch of 32 in 8 "
            "parts; legal here: tp:data=1:tensor=8, fsdp_tp:data=1:fsdp=4:tensor=2, "
            "dp_tp:data=4:tensor=2, fsdp_sp:data=1:fsdp=4:seq=2",
        ),
        (
            "dp",
            3,
            {},
            "sharding dp on 3 devices: data=3 does not divide source clips's batch of 32; legal "
            "here: nothing, so use fewer devices, or batches that they divide",
        ),
        (
            "dp",
            1,
            {"accumulate": 5},
            "accumulate: got 5, expected a divisor of source clips's batch of 32 that leaves at "
            "least 1 rows",
        ),
    ],
)
def test_what_is_not_and_the_nearest_that_is(name, devices, known, sentence):
    with pytest.raises(ValueError) as told:
        sizes(name, devices, **known)
    assert str(told.value) == sentence


def test_an_odd_vocabulary_is_whole_on_each_device_and_told(caplog):
    """Vicuna's with its [PAD]."""
    padded = dataclasses.replace(BIG, llama=dataclasses.replace(BIG.llama, vocab=32001))
    with caplog.at_level(logging.WARNING, logger="vljax"):
        assert sizes("tp", 8, padded) == {"data": 1, "tensor": 8}
    assert caplog.messages == [
        "tensor=8 does not divide the vocabulary of 32001, whose tables each device holds whole"
    ]


def test_a_distractor_needs_another_row():
    problem = Problem(BIG, make_objective("vision", distract=True), VISION, accumulate=8)
    with pytest.raises(ValueError, match=r"accumulate: got 8, .* leaves at least 2 rows"):
        require_legal(problem, strategy("dp"), 1, batch_sizes={"clips": 8})
