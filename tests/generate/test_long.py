"""Policies: what they take of a clip, and that what they have in common comes out the same."""

import dataclasses

import numpy as np
import pytest

from vljax.data.audio import mel_clips
from vljax.data.world import render, sound
from vljax.data.world.files import write_clip
from vljax.data.world.scenes import random_scene
from vljax.generate import long
from vljax.generate.chat import Model, read
from vljax.generate.engine import Request
from vljax.generate.long import POLICIES, Plan, frame_parts, plan, read_long, sound_parts, told
from vljax.generate.media import Encoded, Media
from vljax.generate.sampling import Sampling
from vljax.models.sizes import TINY

SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Eight seconds of the tiny world, 64 frames."""
    scene = random_scene(np.random.default_rng(1), "train", "cut", 2)
    scene = dataclasses.replace(scene, seconds=8.0)
    path = tmp_path_factory.mktemp("long") / "a.mp4"
    write_clip(path, render.frames(scene), sound.waveform(scene))
    return path


@pytest.mark.parametrize(
    ("policy", "seconds", "options", "planned"),
    [
        ("uniform", 120, {}, Plan(1, 8, 8)),
        ("uniform", 120, {"frames": 4}, Plan(1, 4, 8)),
        ("interpolate", 1, {}, Plan(1, 8, 8)),
        ("interpolate", 30, {}, Plan(1, 60, 64)),
        ("interpolate", 120, {}, Plan(1, 128, 128)),
        ("interpolate", 120, {"frames": 20}, Plan(1, 20, 24)),
        ("windows", 30, {}, Plan(8, 8, 8)),
        ("windows", 12.0, {}, Plan(3, 8, 8)),
        ("windows", 30, {"window": 10.0, "frames": 5}, Plan(3, 5, 8)),
        ("memory", 120, {}, Plan(1, 240, 240)),
        ("memory", 3600, {}, Plan(1, 1024, 1024)),
    ],
)
def test_what_is_taken(policy, seconds, options, planned):
    assert plan(POLICIES[policy], seconds, TINY, **options) == planned


@pytest.mark.parametrize(
    ("policy", "options", "sentence"),
    [
        ("uniform", {"frames": 9}, r"frames: got 9, .* the 8 rows of .*interpolate or memory"),
        ("windows", {"frames": 9}, r"frames: got 9, .* the 8 rows"),
        ("memory", {"frames": -1}, r"frames: got -1"),
        ("windows", {"window": 0.0}, r"window: got 0 s"),
        ("windows", {"window": 0.5}, r"got 240 of 0.5 s, 16 tokens each, .*109.*--window 2 or"),
    ],
)
def test_what_does_not_fit_is_told(policy, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(POLICIES[policy], 120.0, TINY, **options)


def test_the_window_that_is_advised_fits():
    assert plan(POLICIES["windows"], 120.0, TINY, window=2.0).windows == 60


@pytest.mark.parametrize(
    ("count", "planned", "parts"),
    [
        (9, Plan(1, 4, 8), [[0, 2, 4, 6]]),
        (10, Plan(2, 4, 8), [[0, 1, 2, 3], [5, 6, 7, 8]]),
        (5, Plan(2, 4, 8), [[0, 1], [2, 3, 4]]),
        (2, Plan(4, 8, 8), [[0], [1]]),
    ],
)
def test_frames_of_every_window(count, planned, parts):
    assert [p.tolist() for p in frame_parts(count, planned)] == parts


def test_sounds_of_every_window():
    wave = np.random.default_rng(0).uniform(-1, 1, (1, 80000)).astype(np.float32)
    first, second = sound_parts(wave, 16000, TINY, 4, seconds=2.0, windows=2)
    spec = dataclasses.replace(TINY.audio, clips=4)
    np.testing.assert_array_equal(first, mel_clips(wave[:, :32000], 16000, spec))
    np.testing.assert_array_equal(second, mel_clips(wave[:, 32000:64000], 16000, spec))
    assert len(sound_parts(wave, 16000, TINY, 4, seconds=2.0, windows=9)) == 3


def test_what_is_said_of_the_frames():
    times = np.arange(0, 8, 0.5)
    few, many = told(times[:3], POLICIES["memory"]), told(times, POLICIES["memory"])
    assert few == "The video contains 3 frames sampled at 0.0, 0.5, 1.0 seconds. "
    assert many == "The video contains 16 frames sampled evenly from 0.0 to 7.5 seconds. "


@pytest.mark.parametrize("policy", POLICIES)
def test_eight_frames_of_a_window_are_the_papers(engine, clip, policy):
    options = {"window": 8.0} if policy == "windows" else {"frames": 8}
    paper = read(engine, clip)
    encoded = read_long(clip, engine, POLICIES[policy], **options)
    assert isinstance(paper, Media)
    prompts = np.asarray(engine.encode([paper]))[0]
    np.testing.assert_allclose(encoded.prompts, prompts, rtol=1e-3, atol=1e-4)
    assert encoded.message == paper.message
    requests = [Request("What?", m) for m in (paper, encoded)]
    assert len(set(engine.answer(requests, SHORT))) == 1


def test_every_window_is_read_by_itself(engine, clip):
    both = read_long(clip, engine, POLICIES["windows"], window=4.0)
    assert both.sight is not None and both.sound is not None
    assert both.sight.shape == (16, 64) and both.sound.shape == (16, 64)
    track = long.read_audio(clip)
    assert track is not None
    wave, rate = track
    seconds = wave.shape[1] / rate
    frames = long.video.read_clip(clip, lambda n: np.arange(32, 64, 4), (48, 48)).frames
    second = Media(frames, mel_clips(wave[:, round(seconds / 2 * rate) :], rate, TINY.audio))
    prompts = np.asarray(engine.encode([second]))[0]
    np.testing.assert_allclose(both.sight[8:], prompts[8:], rtol=1e-3, atol=1e-4)


def test_more_frames_than_rows(engine, clip):
    """Their prompts take no more room, and are others."""
    made = [
        read_long(clip, engine, POLICIES[p], frames=n, listen=False).prompts
        for p, n in (("interpolate", 8), ("interpolate", 40), ("memory", 40))
    ]
    assert {m.shape for m in made} == {(8, 64)}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(made[i] - made[j]).max() > 1e-3


def test_a_merged_clip_of_eight_pictures_is_those(engine):
    """Sixteen times each of eight frames are merged to the eight."""
    tokens = np.random.default_rng(0).normal(size=(8, 4, 96)).astype(np.float32)
    times = np.arange(128.0)
    merged, at = long.merged(np.repeat(tokens, 16, axis=0), times, 8)
    np.testing.assert_allclose(merged, tokens, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(at, times.reshape(8, 16).mean(1), rtol=1e-4)


def test_answers_about_encoded_media_share_a_batch(engine):
    rng = np.random.default_rng(0)

    def media(count: int) -> Encoded:
        return Encoded(rng.normal(size=(count, 64)).astype(np.float32), None)

    given = [Request("What?", media(count)) for count in (8, 24, 16)]
    together = engine.answer(given, SHORT)
    assert together == [engine.answer([r], SHORT)[0] for r in given]
    assert len(set(together)) == 3


def test_an_unknown_policy(engine, clip):
    with pytest.raises(ValueError, match=r"policy: got best, expected one of uniform, interpolate"):
        Model(engine, "random").chat(clip, "What?", policy="best")
