"""Guests that join and leave a running batch: each is answered as if it were alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vljax.generate import running
from vljax.generate.engine import Request
from vljax.generate.media import Media
from vljax.generate.sampling import Sampling, filtered
from vljax.generate.table import Table

RNG = np.random.default_rng(7)
CLIP = Media(RNG.integers(0, 256, (8, 48, 48, 3), np.uint8), None, "")
BOTH = dataclasses.replace(CLIP, mel=RNG.normal(0, 1, (8, 32, 96)).astype(np.float32))
IMAGE = Media(RNG.integers(0, 256, (1, 48, 48, 3), np.uint8), None)
GREEDY = Sampling(max_new_tokens=80)
LONG = "Is it red or blue or green or still or loud or gone? " * 4
GUESTS = {
    "clip": (Request("What moves?", CLIP), GREEDY),
    "long": (Request(LONG, BOTH), dataclasses.replace(GREEDY, max_new_tokens=30)),
    "words": (Request("Who?"), dataclasses.replace(GREEDY, repetition_penalty=1.3)),
    "image": (Request("What is it?", IMAGE), dataclasses.replace(GREEDY, max_new_tokens=5)),
    "late": (Request("Why?", BOTH), GREEDY),
    "last": (Request("Where?", IMAGE), GREEDY),
}


def let_in(table, names, said, seeds=None):
    requests, samplings = zip(*(GUESTS[n] for n in names), strict=True)
    first = table.join(names, requests, samplings, seeds or [0] * len(names))
    said |= {n: [token] for n, token in zip(names, first, strict=True)}


def ended(engine, ids, most) -> bool:
    stop = any(tuple(ids[-len(s) :]) == s for s in engine.stops)
    return stop or ids[-1] == engine.tokenizer.special.eos or len(ids) >= most


def answers(engine, arrivals, most=16, sampling=None):
    """Texts of guests who arrive at steps {step: names}; and the shapes that the cache had."""
    table, said, shapes, step = Table(engine, most), {}, [], 0
    while arrivals.keys() - set(range(step)) or table.guests:
        if step in arrivals:
            let_in(table, arrivals[step], said)
        for name in table.guests:
            if ended(engine, said[name], GUESTS[name][1].max_new_tokens):
                table.leave(name)
        if table.guests:
            for name, token in table.advance():
                said[name].append(token)
            shapes.append((len(table._seats), table._room))
        step += 1
    return {n: engine.text(np.array(ids)) for n, ids in said.items()}, shapes


@pytest.mark.slow
def test_whoever_joins_when_is_answered_as_alone(engine):
    arrivals = {0: ["clip"], 3: ["long", "words"], 6: ["image", "late"], 60: ["last"]}
    found, shapes = answers(engine, arrivals)
    alone = {n: engine.answer([request], s)[0] for n, (request, s) in GUESTS.items()}
    assert found == alone
    assert len(set(alone.values())) == len(alone)
    assert {size for size, _ in shapes} == {1, 4, 16}
    assert max(room for _, room in shapes) > min(room for _, room in shapes)


def test_a_full_table_has_no_free_seat(engine):
    table = Table(engine, 2)
    let_in(table, ["clip", "words"], {})
    assert table.free() == 0
    with pytest.raises(AssertionError, match="free seats"):
        let_in(table, ["late"], {})
    table.leave("clip")
    table.leave("clip")  # has left already
    assert table.free() == 1 and table.guests == ["words"]


def test_draws_depend_on_the_seed_alone(engine):
    drawn = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12)

    def draw(seed, company):
        table, request = Table(engine, 4), GUESTS["clip"][0]
        if company:
            table.join(["x"], [GUESTS["late"][0]], [drawn], [99])
            table.advance()
        ids = table.join(["me"], [request], [drawn], [seed])
        return ids + [dict(table.advance())["me"] for _ in range(11)]

    assert draw(3, company=False) == draw(3, company=True)
    assert draw(3, company=False) != draw(4, company=False)


def test_each_row_has_its_own_nucleus():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, (4, 40)), jnp.float32)
    samplings = [
        Sampling(0.5, top_k=5, top_p=1.0),
        Sampling(1.0, top_k=0, top_p=0.6),
        Sampling(2.0, top_k=7, top_p=0.8),
        Sampling(1.3, top_k=1, top_p=0.1),
    ]
    found = running.nucleus(logits, running.draws(samplings, [0] * 4))
    for i, sampling in enumerate(samplings):
        wanted = filtered(logits[i : i + 1], sampling)[0]
        np.testing.assert_allclose(found[i], wanted, rtol=1e-6)
        assert 0 < np.isfinite(wanted).sum() < 40
