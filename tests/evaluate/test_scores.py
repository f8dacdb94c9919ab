"""Scores against literal values."""

import pytest

from vljax.evaluate.scores import score, wilson


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
