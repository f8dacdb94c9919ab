"""Scores against literal values."""

import numpy as np
import pytest

from vljax.evaluate.scores import (
    bootstrap,
    chosen,
    contains,
    exact,
    figure,
    normalise,
    score,
    token_f1,
    wilson,
)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 0, 0.0, 1.0),
        (0, 10, 0.0, 0.277540),
        (10, 10, 0.722460, 1.0),
        (5, 10, 0.236590, 0.763410),
        (1, 2, 0.094529, 0.905471),
        (90, 100, 0.825633, 0.944771),
        (256, 256, 0.985216, 1.0),
    ],
)
def test_wilson(hits, n, low, high):
    assert wilson(hits, n) == (pytest.approx(low, abs=2e-6), pytest.approx(high, abs=2e-6))


def test_wilson_is_symmetric_and_holds_the_share():
    for n in (1, 7, 50):
        for hits in range(n + 1):
            low, high = wilson(hits, n)
            mirrored = wilson(n - hits, n)
            assert 0 <= low <= hits / n <= high <= 1
            assert (1 - high, 1 - low) == (pytest.approx(mirrored[0]), pytest.approx(mirrored[1]))


def test_score():
    assert score([True, False, True, True], chance=0.5) == {
        "accuracy": 0.75,
        "low": 0.3006,
        "high": 0.9544,
        "n": 4,
        "chance": 0.5,
    }


def test_score_of_nothing():
    assert score([]) == {"accuracy": 0.0, "low": 0.0, "high": 1.0, "n": 0, "chance": None}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A red  Kettle.", "red kettle"),
        ("It doesn't move!", "it doesnt move"),
        ("the man's hat-stand", "mans hat stand"),
        ("The", "the"),  # nothing else is there
        ("a", "a"),
        ("\uff21\uff22 \u00c9t\u00e9", "ab \u00e9t\u00e9"),
        ("another", "another"),
        ("?!", ""),
    ],
)
def test_normalise(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("said", "right", "equal", "held", "f1"),
    [
        ("A kettle.", ["kettle"], 1, 1, 1.0),
        ("It is a kettle.", ["kettle"], 0, 1, 0.5),  # 1 of 3 said, 1 of 1 right
        ("kettles", ["kettle"], 0, 0, 0.0),
        ("", ["kettle"], 0, 0, 0.0),
        ("?", ["!"], 0, 0, 0.0),
        ("red red car", ["red car"], 0, 1, 0.8),  # one red counts once
        ("car red", ["red car"], 0, 0, 1.0),
        ("a dog runs", ["cat sits", "the dog runs fast"], 0, 0, 0.8),  # the better of two
        ("no", ["yes", "No."], 1, 1, 1.0),
    ],
)
def test_words_against_words(said, right, equal, held, f1):
    assert (exact(said, right), contains(said, right)) == (equal, held)
    assert token_f1(said, right) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("said", "which"),
    [
        ("A cat.", 0),
        ("It shows the black cat, I think", 1),  # the longer one, which holds the other
        ("a cat or a dog", None),
        ("a fish", None),
        ("", None),
        ("(C)", 2),
        ("(c) dog", 2),
        ("B. black cat", 1),
        ("B", 1),
        ("D)", None),
        ("A dog", 2),  # an article, not a letter
    ],
)
def test_the_candidate_that_an_answer_names(said, which):
    assert chosen(said, ["a cat", "black cat", "dog"]) == which


def test_bootstrap_is_the_same_each_time_and_holds_the_mean():
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 10
    low, high = bootstrap(values, range(100))
    assert (low, high) == bootstrap(values, range(100))
    # As the normal approximation has it: 0.6 -+ 1.96 sqrt(0.24 / 100).
    assert low == pytest.approx(0.504, abs=0.02)
    assert high == pytest.approx(0.696, abs=0.02)
    assert bootstrap([1.0] * 5, range(5)) == (1.0, 1.0)


def test_questions_about_one_clip_are_no_independent_ones():
    """Ten copies of each of ten values know what ten values know."""
    values = np.random.default_rng(0).normal(size=10).tolist()
    copies, clips = [v for v in values for _ in range(10)], [i // 10 for i in range(100)]
    alone = bootstrap(values, range(10))
    assert bootstrap(copies, clips) == pytest.approx(alone)
    narrow = bootstrap(copies, range(100))
    assert narrow[1] - narrow[0] < 0.5 * (alone[1] - alone[0])


def test_a_figure():
    assert figure([1.0, 0.0, 1.0, 1.0], "aabb")["value"] == 0.75
    assert figure([1.0, 0.0, 1.0, 1.0], "aabb")["n"] == 4
    # Of two clips, drawn twice with replacement: means are 0.5, 0.75 and 1.
    assert figure([1.0, 0.0, 1.0, 1.0], "aabb") | {"value": 0} == {
        "value": 0,
        "low": 0.5,
        "high": 1.0,
        "n": 4,
    }
