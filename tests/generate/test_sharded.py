"""The same tokens on a mesh, whichever the strategy, from the weights that are shipped."""

import numpy as np
import pytest

from vljax.generate.chat import SAMPLE, TINY_WEIGHTS, Conversation, load
from vljax.generate.engine import Request, load_engine
from vljax.generate.media import read_media
from vljax.generate.sampling import Sampling
from vljax.sharding.strategy import STRATEGIES
from vljax.store import flatten

SHORT = Sampling(max_new_tokens=16)


@pytest.fixture(scope="module")
def plain():
    engine = load_engine(TINY_WEIGHTS)
    media = read_media(SAMPLE, engine.size)
    requests = [Request("What happens?", media), Request("What do you hear?", media)]
    return media, requests, engine.answer(requests, SHORT)


@pytest.mark.slow_but_for("fsdp_tp")
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_answers_the_same(name, plain):
    _, requests, answers = plain
    engine = load_engine(TINY_WEIGHTS, sharding=name)
    assert engine.answer(requests, SHORT) == answers
    kernel = engine.params["llama"]["layers"]["0"]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == 8
    split = np.prod(kernel.shape) / np.prod(kernel.sharding.shard_shape(kernel.shape))
    assert split == {"dp": 1, "dp_tp": 2}.get(name, 8)


def test_conversations_and_int8_on_a_mesh(plain):
    media, requests, answers = plain
    model = load("tiny", sharding="fsdp_tp", quantise="int8")
    assert "int8" in "".join(flatten(model.engine.params))
    talk = Conversation(model.engine, media, SHORT)
    assert "".join(talk.stream(requests[0].question)) == answers[0]
    assert talk.ask(requests[1].question)


def test_an_unknown_strategy_is_told():
    with pytest.raises(ValueError, match="sharding: got 'fast', expected one of dp, fsdp"):
        load_engine(TINY_WEIGHTS, sharding="fast")
