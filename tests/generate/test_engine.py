"""Prompts, cached decoding, batches, stops and sampling, on random weights."""

import collections
import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.data.text import LLAMA2, VICUNA
from vljax.generate import decode
from vljax.generate.chat import Conversation, Model
from vljax.generate.engine import Engine, Request, load_engine
from vljax.generate.media import Media, draw
from vljax.generate.sampling import Sampling, choose, filtered
from vljax.store import WeightsError, save

GOLDEN = Path(__file__).parent.parent / "golden"
SHORT = Sampling(max_new_tokens=8)


def make_media(seed: int, frames: int | None = 8, sound: bool = True) -> Media:
    rng = np.random.default_rng(seed)
    pixels = None
    if frames is not None:
        pixels = rng.integers(0, 256, (frames, 48, 48, 3), np.uint8)
    mel = rng.normal(size=(8, 32, 96)).astype(np.float32) if sound else None
    return Media(pixels, mel, "" if frames in (None, 1) else "2 frames. ")


SOUND = make_media(0, None)
VIDEO = make_media(1, 8, sound=False)
STILL = make_media(2, 1, sound=False)
BOTH = make_media(3)


@pytest.mark.parametrize(
    ("media", "prompt"),
    [
        (None, "###Human: Who?###Assistant:"),
        (SOUND, "###Human: You hear:<ImageHere>.  Who?###Assistant:"),
        (VIDEO, "###Human: <Video><ImageHere></Video>  Who?###Assistant:"),
        (STILL, "###Human: <Image><ImageHere></Image>  Who?###Assistant:"),
        (
            BOTH,
            "###Human: You hear:<ImageHere>. You see:<Video><ImageHere></Video>  Who?###Assistant:",
        ),
        (
            dataclasses.replace(STILL, mel=SOUND.mel),
            "###Human: You hear:<ImageHere>. You see:<Image><ImageHere></Image>  Who?###Assistant:",
        ),
    ],
)
def test_prompts(engine, media, prompt):
    request = Request("Who?", media)
    assert engine.prompt(request) == prompt
    here = engine.tokenizer.image_here
    assert engine.prompt_ids(request).count(here) == 8 * prompt.count("<ImageHere>")


def test_a_prompt_of_two_turns(engine):
    request = Request("Who?", VIDEO, (("human", "What?"), ("gpt", "A bell.")))
    assert engine.prompt(request) == (
        "###Human: <Video><ImageHere></Video>  What?###Assistant: A bell."
        "###Human: Who?###Assistant:"
    )


def test_prompts_of_other_templates(engine):
    history = (("human", "What?"), ("gpt", "A bell."))
    vicuna = dataclasses.replace(engine, template=VICUNA)
    assert vicuna.prompt(Request("Who?", VIDEO)) == (
        "###Human: <Video><ImageHere></Video> 2 frames.  Who?###Assistant:"
    )
    system = dataclasses.replace(LLAMA2, system="Be kind.")
    llama2 = dataclasses.replace(engine, template=system)
    assert llama2.prompt(Request("Who?", STILL, history)) == (
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n<Image><ImageHere></Image>  What? [/INST] A bell. "
        "</s><s>[INST] Who? [/INST]"
    )


def pad(engine: Engine, requests: list[Request], length: int):
    """-> tokens, mask of prompts, padded at the end."""
    tokens = np.zeros((len(requests), length), np.int32)
    mask = np.zeros((len(requests), length), bool)
    for i, request in enumerate(requests):
        ids = engine.prompt_ids(request)
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    return tokens, mask


def generate(engine, requests, length=64, sampling=SHORT, stops=(), seed=0):
    tokens, mask = pad(engine, requests, length)
    media = engine.encode([r.media for r in requests])
    key = jax.random.key(seed)
    ids, logits = decode.generate(
        engine.model, engine.params, tokens, mask, media, key, sampling, stops
    )
    return np.asarray(ids), np.asarray(logits)


ASKED = [
    Request("What is shown, and how does it move?", make_media(4)),
    Request("Who?", make_media(5)),
    Request("What do you hear first, and what then?", make_media(6)),
]


@pytest.fixture(scope="module")
def plain(engine):
    return generate(engine, ASKED)


def test_answers_differ(plain):
    assert len({tuple(row) for row in plain[0].tolist()}) == len(ASKED)
    assert all(len(set(row)) > 2 for row in plain[0].tolist())


def test_a_batch_changes_no_answer(engine, plain):
    for row, request in zip(plain[0], ASKED, strict=True):
        alone, _ = generate(engine, [request])
        np.testing.assert_array_equal(alone[0], row)


def test_padding_changes_nothing(engine, plain):
    ids, logits = generate(engine, ASKED, length=96)
    np.testing.assert_array_equal(ids, plain[0])
    np.testing.assert_allclose(logits, plain[1], rtol=1e-4, atol=1e-4)


def test_cached_decoding_is_the_uncached_one(engine, plain):
    tokens, mask = pad(engine, ASKED, 64 + SHORT.max_new_tokens)
    media = engine.encode([r.media for r in ASKED])

    @jax.jit
    def logits(tokens, mask):
        return engine.model.apply({"params": engine.params}, tokens, mask, media, method="logits")

    rows = np.arange(len(ASKED))
    for n in range(SHORT.max_new_tokens):
        last = mask.sum(1) - 1
        now = np.asarray(logits(tokens, mask))[rows, last]
        if n == 0:
            np.testing.assert_allclose(now, plain[1], rtol=1e-4, atol=1e-4)
        chosen = now.argmax(-1)
        np.testing.assert_array_equal(chosen, plain[0][:, n], f"token {n}")
        tokens[rows, last + 1], mask[rows, last + 1] = chosen, True


def test_a_stop_ends_its_row_and_no_other(engine, plain):
    rows = plain[0].tolist()
    pairs = [list(itertools.pairwise(row)) for row in rows]
    often = collections.Counter(itertools.chain(*pairs))
    here, at = next((i, n) for i, p in enumerate(pairs) for n in range(1, 6) if often[p[n]] == 1)
    stop = pairs[here][at]
    ids, _ = generate(engine, ASKED, stops=((500, 501, 502), stop))
    ended = [*rows[here][: at + 2], *[0] * (6 - at)]
    assert ids.tolist() == [*rows[:here], ended, *rows[here + 1 :]]


def test_eos_ends_a_row(engine, plain):
    """The weights of the first row's third token become eos's."""
    third = int(plain[0][0, 2])
    kernel = np.array(engine.params["llama"]["head"]["kernel"])
    kernel[:, [2, third]] = kernel[:, [third, 2]]
    params = dict(engine.params)
    params["llama"] = dict(params["llama"], head={"kernel": jnp.asarray(kernel)})
    ids, _ = generate(dataclasses.replace(engine, params=params), ASKED)
    assert ids[0, 2:].tolist() == [2, 0, 0, 0, 0, 0]


def test_answers_of_mixed_requests_keep_their_order(engine):
    requests = [ASKED[0], Request("Who?", STILL), Request("Who?"), Request("Who?", SOUND), ASKED[1]]
    together = engine.answer(requests, SHORT)
    assert together == [engine.answer([r], SHORT)[0] for r in requests]
    assert len(set(together)) == len(requests)


def test_images_beside_clips_keep_their_answers(engine):
    """An image is padded to a clip's frames, which it does not see."""
    requests = [Request("Who?", STILL), Request("Who?", VIDEO)]
    assert engine.answer(requests, SHORT) == [engine.answer([r], SHORT)[0] for r in requests]


def test_the_text_ends_at_the_stop(engine):
    ids = engine.tokenizer.encode(" A bell.###Human: more")
    assert engine.text(np.array(ids)) == "A bell."


def test_a_conversation_remembers(engine):
    talk = Conversation(engine, VIDEO, SHORT)
    first = talk.ask("What?")
    second = talk.ask("Who?")
    assert talk.history == (("human", "What?"), ("gpt", first), ("human", "Who?"), ("gpt", second))
    assert second == engine.answer([Request("Who?", VIDEO, talk.history[:2])], SHORT)[0]
    assert Model(engine, "m").generate([Request("What?", VIDEO)], SHORT) == [first]


def test_towers_run_once_a_clip(engine, monkeypatch):
    """And again where their input differs, whatever it was read from."""
    fresh = dataclasses.replace(engine)
    encoded = []
    encode = Engine._encode
    monkeypatch.setattr(
        Engine, "_encode", lambda self, media: encoded.append(len(media)) or encode(self, media)
    )
    other = dataclasses.replace(VIDEO, frames=VIDEO.frames[::-1])
    first = fresh.encode([VIDEO, other, VIDEO])
    assert encoded == [2]
    np.testing.assert_array_equal(fresh.encode([VIDEO])[0], first[0])
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    assert encoded == [2]
    monkeypatch.setattr("vljax.generate.engine.KEPT", 1)
    fresh.encode([other])
    fresh.encode([VIDEO])
    assert encoded == [2, 1]


def test_beams_of_mixed_requests_are_those_of_each_alone(engine):
    """At the template's stop, too: beam search is a batch like any other."""
    searched = dataclasses.replace(SHORT, beams=3)
    requests = [ASKED[0], Request("Who?"), ASKED[1]]
    together = engine.answer(requests, searched)
    assert together == [engine.answer([r], searched)[0] for r in requests]
    assert together != engine.answer(requests, SHORT)


def test_too_long_a_prompt_is_told(engine):
    with pytest.raises(ValueError, match=r"prompt: got \d+ tokens, expected at most 2000"):
        engine.answer([Request("Who? " * 1500)], SHORT)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0, top_k=0, top_p=1.0), [0, 1, 2, 3]),
        (Sampling(1.0, top_k=2, top_p=1.0), [0, 1]),
        (Sampling(1.0, top_k=1, top_p=1.0), [0]),
        (Sampling(1.0, top_k=9, top_p=1.0), [0, 1, 2, 3]),
        (Sampling(1.0, top_k=0, top_p=0.45), [0]),
        (Sampling(1.0, top_k=0, top_p=0.55), [0, 1]),
        (Sampling(1.0, top_k=0, top_p=0.85), [0, 1, 2]),
        (Sampling(1.0, top_k=0, top_p=0.01), [0]),
        (Sampling(1.0, top_k=3, top_p=0.6), [0, 1]),
        (Sampling(0.25, top_k=0, top_p=0.85), [0]),  # temperature comes first
        (Sampling(1.0, top_k=2, top_p=0.7), [0, 1]),  # 0.5 / 0.8 of what is left is not enough
        (Sampling(1.0, top_k=2, top_p=0.6), [0]),  # but for 0.6 it is
    ],
)
def test_filters(sampling, kept):
    """On shares of 0.5, 0.3, 0.15 and 0.05."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    got = np.asarray(filtered(logits, sampling))[0]
    assert np.flatnonzero(np.isfinite(got)).tolist() == kept
    wanted = np.asarray(logits)[0, kept] / sampling.temperature
    np.testing.assert_allclose(got[kept], wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["T1_k50_p0.9", "T0.3_k50_p0.9", "T2_k50_p0.5"])
def test_filters_as_the_original(name):
    temperature, k, p = (float(part.lstrip("Tkp")) for part in name.split("_"))
    with np.load(GOLDEN / "llm.npz") as file:
        logits = file["gen_video_vicuna/prefix_logits_last"]
        kept, probs = file[f"filter_{name}/kept"], file[f"filter_{name}/probs"]
    got = filtered(jnp.asarray(logits), Sampling(temperature, int(k), p))
    np.testing.assert_array_equal(np.isfinite(got), kept.astype(bool))
    np.testing.assert_allclose(jax.nn.softmax(got), probs, atol=1e-5)


def test_choices():
    logits = jnp.tile(jnp.log(jnp.array([[0.3, 0.5, 0.2]])), (4000, 1))
    assert set(choose(logits, jax.random.key(0), Sampling()).tolist()) == {1}
    drawn = np.asarray(choose(logits, jax.random.key(0), Sampling(1.0, 2, 1.0)))
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(shares, [0.375, 0.625, 0], atol=0.03)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("beams", 0),
    ],
)
def test_sampling_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field}: got {value}, expected"):
        Sampling(**{field: value})


def test_one_stage_s_weights_are_no_model(tmp_path):
    save(tmp_path, {"a": np.ones(2, np.float32)}, {"run": "text"})
    with pytest.raises(WeightsError, match=r"holds one stage's weights \(text\), expected a whole"):
        load_engine(tmp_path)


@pytest.mark.parametrize("media", [SOUND, VIDEO, STILL, BOTH])
def test_what_the_model_gets_can_be_drawn(media, tmp_path):
    from PIL import Image

    draw(media, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 48
