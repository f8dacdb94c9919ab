"""What an answer rests on, told right where it is known: clips of the tiny world."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vljax
from vljax.cli.main import main
from vljax.data.world import render
from vljax.data.world.files import write_clip
from vljax.data.world.scenes import Scene, Thing
from vljax.data.world.sound import waveform
from vljax.generate.engine import Engine, Request
from vljax.generate.likelihood import log_likelihoods
from vljax.generate.media import Media, read_media
from vljax.generate.probe import REAL, Probe, Row, probe, shuffled, spoilt

SCENE = Scene("one", (Thing("kettle", "blue", "right"),), ("siren",), 2.0, 0.5, 3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, render.frames(SCENE), waveform(SCENE))
    return path


@pytest.fixture(scope="module")
def tiny() -> Engine:
    return vljax.load("tiny").engine


@pytest.fixture(scope="module")
def media(tiny, clip) -> Media:
    return read_media(clip, tiny.size)


@pytest.mark.parametrize(
    ("question", "answer", "rests_on"),
    [
        ("What colour is it?", "Blue.", ("picture",)),
        ("What do you hear?", "A siren.", ("sound",)),
        ("How does it move?", "It moves right.", ("picture", "order")),
        (
            "What happens, and what do you hear?",
            "A blue kettle moves right, and I hear a siren.",
            ("picture", "order", "sound"),
        ),
        ("How heavy is it?", "I can't tell from this.", ()),
    ],
)
def test_the_verdict_names_what_the_answer_needs(tiny, media, question, answer, rests_on):
    found = probe(tiny, media, question)
    assert (found.answer, found.rests_on) == (answer, rests_on)
    assert found.verdict.count(".") >= 1 and "\n" not in found.verdict
    assert found.rows[0].answer == answer
    assert len({row.given for row in found.rows}) == 6
    for row in found.rows[1:]:  # where its own answer is another one, this one became less likely
        assert (row.answer == answer) or found.less_likely(row) > 1


def test_likelihoods_are_those_of_the_whole_model(tiny, media):
    request = Request("What do you hear?", media)
    ((got, count, likeliest),) = log_likelihoods(tiny, [request], ["A bird."])
    prompt, whole = tiny.prompt_ids(request), tiny.answered_ids(request, "A bird.")
    assert whole[: len(prompt)] == prompt
    assert count == len(whole) - len(prompt) > 2
    tokens = jnp.array([whole])
    whole_model = jax.jit(functools.partial(tiny.model.apply, method="logits"))
    soft = tiny.encode([media])
    logits = np.float64(whole_model({"params": tiny.params}, tokens, tokens >= 0, soft)[0])
    sure = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = sum(sure[i - 1, whole[i]] for i in range(len(prompt), len(whole)))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    (better,) = log_likelihoods(tiny, [request], ["A siren."])
    assert better.nats > got + 3
    assert better.likeliest and not likeliest


def test_likelihoods_of_many_are_those_of_each(tiny, media):
    """Questions, answers and media of any kinds at once."""
    seen = dataclasses.replace(media, mel=None)
    asked = [
        (Request("What do you hear?", media), "A siren."),
        (Request("What colour is it?", seen), "Blue."),
        (Request("What colour is it?", media), "A blue kettle moves right."),
        (Request("What do you hear?"), "A bird."),
        (Request("What colour is it?", seen), "Red."),
    ]
    together = log_likelihoods(tiny, *map(list, zip(*asked, strict=True)))
    for (request, answer), got in zip(asked, together, strict=True):
        (alone,) = log_likelihoods(tiny, [request], [answer])
        assert got.nats == pytest.approx(alone.nats, rel=1e-4)
        assert got[1:] == alone[1:]
    assert [found.likeliest for found in together[:2]] == [True, True]
    assert not together[4].likeliest and together[4].nats < together[1].nats


def test_one_thing_is_taken_away_at_a_time(tiny, media):
    other = Media(media.frames[:3] // 2, media.mel + 1, "other")
    changed = spoilt(media, other, tiny.size)
    assert len(changed) == 5
    for name, version in changed.items():
        assert np.array_equal(version.mel, media.mel) == ("sound" not in name)
        assert np.array_equal(version.frames, media.frames) == ("sound" in name)
        assert (version.message, version.frames.shape) == (media.message, media.frames.shape)
    np.testing.assert_array_equal(changed["another clip's sound"].mel, other.mel)
    assert set(np.unique(changed["picture blank"].frames)) == {128}
    image = Media(media.frames[:1], None)
    assert set(spoilt(image, other, tiny.size)) == {"picture blank", "another clip's picture"}


@pytest.mark.parametrize("count", [2, 3, 4, 8, 32])
def test_shuffling_moves_every_frame(count):
    order = shuffled(count)
    assert sorted(order) == list(range(count))
    assert not np.array_equal(order, np.arange(count))
    if count > 3:
        assert (order != np.arange(count)).all()


def test_the_worst_loss_counts():
    def found(*nats: float) -> Probe:
        names = (REAL, "picture blank", "another clip's picture", "sound muted")
        return Probe("?", "!", 2, tuple(map(Row, names, nats, ["!"] * 4)))

    assert found(-1, -2, -8, -1.5).rests_on == ("picture",)
    assert found(-1, -2, -8, -1.5).verdict == (
        "The answer rests on the picture (1,100 times less likely without it), not on the sound "
        "(at most 1.6)."
    )
    assert found(-1, -2, -1, 0).verdict == (
        "The answer rests on nothing in the file: no change of the picture or the sound makes it "
        "10 times less likely (at most 2.7)."
    )
    assert found(0, -900, 0, -900).rests_on == ("picture", "sound")


def test_the_command_prints_a_table_and_a_sentence(clip, capsys):
    assert main(["probe", str(clip), "--ask", "What do you hear?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[-1].startswith("The answer rests on the sound (")
    assert main(["probe", str(clip), "--ask", "What colour is it?", "--no-audio", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["rests_on"]) == ("Blue.", ["picture"])
    assert len(told["rows"]) == 4
    assert main(["probe", str(clip), "--ask", "Who?", "--times", "1"]) == 1
    assert "--times: got 1, expected more than 1" in capsys.readouterr().err
