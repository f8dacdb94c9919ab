"""What an answer claims to be heard, and what a set of yes/no answers is worth.

Labels are matched by words, not by meaning: case, articles and plurals make no difference, and what
is denied ("no bell", "I don't hear a bell") is not claimed. A label may have several spellings:
"dog|bark|barking".
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vljax.evaluate.scores import score

ARTICLES = frozenset(("a", "an", "the", "some"))
DENIALS = frozenset(("no", "not", "cannot", "never", "without", "neither", "nor", "none"))
# Where a new clause begins: what was denied before is not denied there.
_CLAUSES = re.compile(
    r"[.!?;:\n]+|\b(?:but|however|instead|only)\b|^\s*(?:yes|no)\b\s*,"
    r"|,?\s*\b(?:and|so)\s+(?=(?:i|it|there|we|you|they)\b)"
    r"|,\s*(?=(?:i|it|there|we|you|they)\b)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
DRAWS = 2000  # of the bootstrap
Report = dict[str, Any]


class Verdict(NamedTuple):
    """What was said to one question about whether something is heard.

    Attributes:
      present: whether it is. kind: how an absent thing was chosen, "" for a present one.
      said: True is yes, False no, None neither. clip: whose question it is.
    """

    clip: str
    present: bool
    kind: str
    said: bool | None


def words(text: str) -> list[str]:
    """Lower case, singular, without articles."""
    found = [w.lower().replace("’", "'") for w in _WORD.findall(text)]
    return [singular(w) for w in found if w not in ARTICLES]


def singular(word: str) -> str:
    """English plurals by their endings; what is irregular needs a spelling of its own."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses", "zzes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def spellings(label: str) -> list[list[str]]:
    """The words of each spelling of a label."""
    return [found for part in label.split("|") if (found := words(part))]


@functools.cache
def overlap(one: str, other: str) -> bool:
    """Whether an answer that names one of two labels may name the other by that."""
    pairs = ((set(a), set(b)) for a in spellings(one) for b in spellings(other))
    return any(a <= b or b <= a for a, b in pairs)


def claims(answer: str, label: str) -> bool:
    """Whether all words of a spelling stand in one clause, before anything in it is denied."""
    affirmed = [_affirmed(clause) for clause in _CLAUSES.split(answer)]
    return any(set(part) <= clause for part in spellings(label) for clause in affirmed)


def _affirmed(clause: str) -> set[str]:
    found = words(clause)
    denied = (i for i, w in enumerate(found) if w in DENIALS or w.endswith("n't"))
    return set(found[: next(denied, len(found))])


def yes_or_no(answer: str) -> bool | None:
    """By the first word; None where it is neither."""
    first = _WORD.search(answer)
    return {"yes": True, "no": False}.get(first.group().lower() if first else "")


def pope_yes_or_no(answer: str) -> bool:
    """POPE's own rule, which knows no third: yes, if its first sentence has no "no" or "not".

    Source: POPE (Li et al., 2023), evaluate.py.
    """
    said = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(said)


def pope(verdicts: Sequence[Verdict]) -> Report:
    """Accuracy, yes-rate, precision, recall and F1 as in POPE, with 95 % intervals.

    Yes is the positive answer. Neither counts as wrong, and as no claim. ``hallucinated`` is the
    share of absent things that are claimed, by the ``kind`` they were chosen by and in all.
    """
    absent = [v for v in verdicts if not v.present]
    kinds = sorted({v.kind for v in absent})
    return {
        "accuracy": score([v.said is v.present for v in verdicts], 0.5),
        "yes_rate": score([v.said is True for v in verdicts]),
        "neither": score([v.said is None for v in verdicts]),
        "precision": score([v.present for v in verdicts if v.said]),
        "recall": score([v.said is True for v in verdicts if v.present]),
        "f1": f1(verdicts),
        "hallucinated": {
            "all": score([v.said is True for v in absent]),
            **{k: score([v.said is True for v in absent if v.kind == k]) for k in kinds},
        },
    }


def f1(verdicts: Sequence[Verdict]) -> dict[str, float | int]:
    """{"value", "low", "high", "n"}; the interval is a bootstrap's, which draws whole clips."""
    clips = list(dict.fromkeys(v.clip for v in verdicts))
    counts = np.zeros((len(clips), 3))  # claimed rightly, claimed wrongly, missed
    for v in verdicts:
        row = counts[clips.index(v.clip)]
        row += (v.present and v.said is True, not v.present and v.said is True, 0)
        row[2] += v.present and v.said is not True
    if not clips:
        return {"value": 0.0, "low": 0.0, "high": 1.0, "n": 0}
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(clips), np.full(len(clips), 1 / len(clips)), DRAWS) @ counts
    low, high = np.quantile(_f1(drawn), (0.025, 0.975))
    whole = _f1(counts.sum(axis=0, keepdims=True))[0]
    low, high = min(low, whole), max(high, whole)
    found = {"value": whole, "low": low, "high": high}
    return {k: round(float(x), 4) for k, x in found.items()} | {"n": len(clips)}


def _f1(counts: np.ndarray) -> np.ndarray:
    right, wrong, missed = counts.T
    return 2 * right / np.maximum(2 * right + wrong + missed, 1e-9)


def ranked(preferences: Sequence[tuple[float, float]]) -> dict[str, float | int | None]:
    """How often yes is preferred more for what is there than for what is not, (present, absent).

    It is blind to a general leaning to yes or to no; equal preferences count as wrong.
    """
    return score([there > not_there for there, not_there in preferences], 0.5)
