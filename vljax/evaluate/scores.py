"""Scores with what a reader needs to judge them: an interval, how many, and chance."""

import collections
import math
import re
import unicodedata
from collections.abc import Hashable, Sequence

import numpy as np

NORMALISATION = (
    "lower case, no punctuation, no articles (a, an, the) unless nothing else is there, single "
    "spaces"
)
ARTICLES = ("a", "an", "the")
DRAWS = 1000  # of the bootstrap


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def score(hits: Sequence[bool], chance: float | None = None) -> dict[str, float | int | None]:
    """{"accuracy", "low", "high", "n", "chance"} of right and wrong answers."""
    n, right = len(hits), sum(map(bool, hits))
    low, high = wilson(right, n)
    return {
        "accuracy": round(right / n, 4) if n else 0.0,
        "low": round(low, 4),
        "high": round(high, 4),
        "n": n,
        "chance": chance,
    }


def normalise(text: str) -> str:
    """As ``NORMALISATION`` says; apostrophes join what they stand between, other marks part."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = re.sub(r"(?<=\w)['\u2019](?=\w)", "", text)
    words = re.sub(r"[^\w\s]|_", " ", text).split()
    return " ".join([w for w in words if w not in ARTICLES] or words)


def exact(said: str, right: Sequence[str]) -> float:
    """1 where the answer is one of the right ones, after normalisation."""
    return float(bool(normalise(said)) and normalise(said) in map(normalise, right))


def contains(said: str, right: Sequence[str]) -> float:
    """1 where the words of a right answer stand in the answer, one after the other."""
    return float(any(_within(normalise(answer), normalise(said)) for answer in right))


def token_f1(said: str, right: Sequence[str]) -> float:
    """Of the words that answer and right answer share, the harmonic mean of precision and recall.

    That of the right answer that it is highest for.
    """
    return max(_f1(normalise(said).split(), normalise(answer).split()) for answer in right)


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    shared = (collections.Counter(said) & collections.Counter(right)).total()
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def _within(words: str, text: str) -> bool:
    return bool(words) and f" {words} " in f" {text} "


def chosen(said: str, candidates: Sequence[str]) -> int | None:
    """Which of the candidates a generated answer names, None for none or several.

    It is one after normalisation; or begins with its letter, in brackets or before a bracket, a
    point, a colon or the end; or holds its words, and no other's that are not part of them.
    """
    plain = [normalise(c) for c in candidates]
    if normalise(said) in plain:
        return plain.index(normalise(said))
    letter = re.match(r"\s*(?:\(([A-Za-z])\)|([A-Z])(?:[).:]|\s*$))", said)
    if letter:
        at = ord((letter[1] or letter[2]).upper()) - ord("A")
        return at if at < len(candidates) else None
    held = [i for i, c in enumerate(plain) if _within(c, normalise(said))]
    longest = [i for i in held if not any(j != i and _within(plain[i], plain[j]) for j in held)]
    return longest[0] if len(longest) == 1 else None


def bootstrap(
    values: Sequence[float], clusters: Sequence[Hashable], seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of the mean: of means over clusters drawn with replacement, percentiles.

    Questions about one clip are a cluster: they are right or wrong together.
    """
    groups: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        groups.setdefault(cluster, []).append(value)
    sums = np.array([math.fsum(g) for g in groups.values()])
    counts = np.array([len(g) for g in groups.values()])
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(DRAWS):
        drawn = rng.integers(len(sums), size=len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def figure(values: Sequence[float], clusters: Sequence[Hashable]) -> dict[str, float | int]:
    """{"value", "low", "high", "n"}: a mean and its interval."""
    low, high = bootstrap(values, clusters)
    mean = math.fsum(values) / len(values)
    return {"value": round(mean, 4), "low": round(low, 4), "high": round(high, 4), "n": len(values)}
