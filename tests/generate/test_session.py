"""Turns that keep the cache, answers in pieces: both as if all were read and told at once."""

import dataclasses

import numpy as np
import pytest

from vljax.data.text import TEMPLATES
from vljax.generate.chat import Conversation
from vljax.generate.engine import Request
from vljax.generate.media import Media
from vljax.generate.sampling import Sampling
from vljax.generate.session import Session, settled

LONG = Sampling(max_new_tokens=24)
CLIP = Media(np.random.default_rng(7).integers(0, 256, (8, 48, 48, 3), np.uint8), None, "")


def talk(engine, questions, media=CLIP, sampling=LONG) -> tuple[Conversation, list[int]]:
    """The conversation, and how many tokens each turn read."""
    conversation, reads = Conversation(engine, media, sampling), []
    for question in questions:
        conversation.ask(question)
        reads.append(conversation.session.reads)
    return conversation, reads


def from_scratch(engine, conversation) -> list[str]:
    """The answers to the same questions, each after all that was said, without a cache."""
    said, media, sampling = conversation.history, conversation.media, conversation.sampling
    return [
        engine.answer([Request(said[i][1], media, said[:i])], sampling, seed=i)[0]
        for i in range(0, len(said), 2)
    ]


def new_tokens(engine, conversation, reads) -> list[int]:
    """What of ``reads`` is no more than a turn adds to the prompt before it.

    At most: an answer's words may be other ids when they are read anew.
    """
    said = conversation.history
    whole = [0] + [
        len(engine.prompt_ids(Request(said[i][1], CLIP, said[:i]))) for i in range(0, len(said), 2)
    ]
    return [min(r, b - a + 1) for r, a, b in zip(reads, whole, whole[1:], strict=False)]


def test_later_turns_read_what_is_new_and_answer_as_from_scratch(engine):
    questions = ["What moves?", "And then?", "Which colour is it, and where does it go?"]
    conversation, reads = talk(engine, questions)
    answers = [words for role, words in conversation.history if role == "gpt"]
    assert answers == from_scratch(engine, conversation)
    assert len(set(answers)) == 3
    assert reads == new_tokens(engine, conversation, reads)


def test_a_full_cache_grows(engine, monkeypatch):
    monkeypatch.setattr("vljax.generate.session.ROOMS", (64, 256))
    questions = ["Is it red?", "Is it blue?", "Is it gone?"]
    conversation, reads = talk(engine, questions)
    assert conversation.session.context.seen.shape[1] == 256
    assert reads == new_tokens(engine, conversation, reads)
    answers = [words for role, words in conversation.history if role == "gpt"]
    assert answers == from_scratch(engine, conversation)


def test_a_session_serves_whoever_comes(engine):
    """Other media, other words: what does not fit is not used."""
    session, other = Session(engine), dataclasses.replace(CLIP, frames=CLIP.frames[::-1])
    requests = [
        Request("Who?", CLIP),
        Request("Who is?", CLIP),
        Request("Who is?", other),
        Request("Who is?"),
    ]
    for request in requests:
        assert session.answer(request, LONG) == engine.answer([request], LONG)[0]


def test_a_stream_is_the_answer_in_pieces(engine):
    asked, streamed = talk(engine, ["Who?", "Why?"])[0], Conversation(engine, CLIP, LONG)
    pieces = [list(streamed.stream(question)) for question in ("Who?", "Why?")]
    assert streamed.history == asked.history
    assert all(len(p) > 3 and all(p) for p in pieces)


def test_a_drawn_answer_is_streamed_as_drawn(engine):
    drawn = dataclasses.replace(LONG, temperature=1.0)
    request = Request("Who?", CLIP)
    whole = Session(engine).answer(request, drawn, seed=3)
    assert "".join(Session(engine).stream(request, drawn, seed=3)) == whole
    assert whole != Session(engine).answer(request, drawn, seed=4)


def test_a_stream_that_is_left_breaks_nothing(engine):
    session, request = Session(engine), Request("Who?", CLIP)
    next(session.stream(request, LONG))
    assert session.answer(request, LONG) == engine.answer([request], LONG)[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (" A bell", "A bell"),
        (" A bell ", "A bell"),
        (" A bell.#", "A bell."),
        (" A bell.###Hum", "A bell."),
        (" Assist", ""),
        ("Assistant: It", "It"),
        (" caf\ufffd", "caf"),
        (" \U0001f514 rings", "\U0001f514 rings"),
    ],
)
def test_what_is_settled(text, told):
    assert settled(text, TEMPLATES["tiny"]) == told


def test_pieces_never_split_a_character(engine, monkeypatch):
    """Four bytes, a token each: nothing is told before the last."""
    texts = ["\ufffd", "\ufffd\ufffd", "\ufffd\ufffd\ufffd", "\U0001f514", "\U0001f514 r"]
    session = Session(engine)
    monkeypatch.setattr(
        session, "_texts", lambda *_: iter([*((t, "") for t in texts), (None, "\U0001f514 ring")])
    )
    assert list(session.stream(Request("Who?"))) == ["\U0001f514", " r", "ing"]
