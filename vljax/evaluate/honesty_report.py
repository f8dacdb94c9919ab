"""What was said in an exam of sounds, as figures, and the scale of the audio features as a plot."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vljax.evaluate.honesty import (
    CONDITIONS,
    VIEWS,
    Ask,
    Asker,
    Exam,
    Wording,
    asks,
    asks_of,
    scale_name,
    yes_no_asks,
)
from vljax.evaluate.naming import (
    Report,
    Verdict,
    claims,
    overlap,
    pope,
    pope_yes_or_no,
    ranked,
    words,
    yes_or_no,
)
from vljax.evaluate.scores import score

COMMON = 4  # most frequent answers that a condition's row holds


def evaluate_sound(asker: Asker, wording: Wording, scales: Sequence[float]) -> Report:
    """Asks all there is to ask, and what came out: see the parts below."""
    exam = asker.exam
    asker.run(asks(exam, wording, scales), yes_no_asks(exam, wording))
    heard = collections.Counter(label for case in exam.cases for label in case.heard)
    return {
        "clips": len(exam.cases),
        "sounds": dict(heard.most_common()),
        "chance": chance(exam),
        "own_scale": exam.norm,
        "claim": claim(asker, wording),
        "conditions": {v: conditions(asker, wording, v) for v in exam.views},
        "probes": {v: probes(asker, wording, v) for v in exam.views},
        "scales": [_scale(asker, wording, s) for s in scales],
    }


def chance(exam: Exam) -> float:
    """How often the best answer that is always the same is right."""
    shares = [sum(label in c.heard for c in exam.cases) for label in exam.labels]
    return round(max(shares) / len(exam.cases), 4)


def right(answer: str, heard: Sequence[str], labels: Sequence[str]) -> bool:
    """Names one of the sounds that are heard, and none of the other ``labels``."""
    others = [x for x in labels if not any(overlap(x, h) for h in heard)]
    return any(claims(answer, h) for h in heard) and not any(claims(answer, x) for x in others)


def claim(asker: Asker, wording: Wording) -> Report:
    """The paper's claim as one figure: sounds named right on sounds alone, and what it beats."""
    names = {"real": "real", "zeroed": "x0", "muted": "muted"}
    return {name: _named(asker, wording, kind, "alone") for name, kind in names.items()}


def _scale(asker: Asker, wording: Wording, scale: float) -> Report:
    kind = scale_name(asker.exam, scale)
    named = {view: _named(asker, wording, kind, view) for view in asker.exam.views}
    return {"scale": scale, "own": kind == "real"} | named


def _named(asker: Asker, wording: Wording, condition: str, view: str) -> Report:
    """How often the answer is ``right``.

    ``among``: how often it names the sound, maybe among others; ``seen``: what is only seen.
    """
    exam, asked = asker.exam, asks_of(asker.exam, wording, condition, view)
    said = [asker.answer(ask) for ask in asked]
    cases = [exam.cases[ask.case] for ask in asked]
    hits = [
        right(a, c.heard, [*exam.labels, *c.seen_only]) for a, c in zip(said, cases, strict=True)
    ]
    among = [any(claims(a, x) for x in c.heard) for a, c in zip(said, cases, strict=True)]
    seen = [
        any(claims(a, x) for x in c.seen_only)
        for a, c in zip(said, cases, strict=True)
        if c.seen_only
    ]
    more = {"among": score(among), "seen": score(seen), "answers": _common(said)}
    return score(hits, chance(exam)) | more


def conditions(asker: Asker, wording: Wording, view: str) -> Report:
    """For every condition, shares of the answers, each with an interval.

    ``own``: names the clip's own sound; ``given``: the sound of the other clip that it was given;
    ``seen``: what only its picture shows (of clips that show such a thing); ``any``: any sound of
    the exam; ``same``: the same words as to the real sound. ``answers``: the most frequent.
    """
    return {name: _condition(asker, wording, name, view) for name in CONDITIONS}


def _condition(asker: Asker, wording: Wording, condition: str, view: str) -> Report:
    exam, own, given, seen, known, same = asker.exam, [], [], [], [], []
    said = []
    for ask in asks_of(exam, wording, condition, view):
        case, answer = exam.cases[ask.case], asker.answer(ask)
        real = asker.answer(Ask(ask.case, "real", view, wording.hear))
        said.append(answer)
        own.append(any(claims(answer, x) for x in case.heard))
        known.append(any(claims(answer, x) for x in exam.labels))
        same.append(words(answer) == words(real))
        if case.seen_only:
            seen.append(any(claims(answer, x) for x in case.seen_only))
        if condition == "swapped":
            partner = exam.partners[ask.case]
            assert partner is not None
            given.append(any(claims(answer, x) for x in exam.cases[partner].heard))
    row: Report = {"own": score(own), "seen": score(seen), "any": score(known)}
    if condition == "swapped":
        row["given"] = score(given)
    if condition != "real":
        row["same"] = score(same)
    return row | {"answers": _common(said)}


def probes(asker: Asker, wording: Wording, view: str) -> Report:
    """The balanced questions, read in four ways, as ``pope`` gives each.

    ``naming``: whether the answer to the open question names the sound; ``words``: whether the
    answer's first word is yes or no; ``pope``: by POPE's own rule; ``likelihood``: whether "Yes."
    is likelier than "No.", with ``ranked`` besides. Whatever the answer's form, ``names_heard`` is
    how often it names a sound that is there, and ``echoes`` how often one that is asked about and
    is not.
    """
    exam = asker.exam
    asked = [p for p in exam.probes if exam.fits(p.case, view)]
    questions = {(a.case, a.question): a for a in yes_no_asks(exam, wording) if a.view == view}
    rows: dict[str, list[Verdict]] = {n: [] for n in ("naming", "words", "pope", "likelihood")}
    preferred: dict[int, list[float]] = collections.defaultdict(list)
    said, heard, echoes = [], [], []
    for probe in asked:
        ask = questions[probe.case, wording.yes_no_about(probe.label)]
        answer, preference = asker.answer(ask), asker.preference(ask)
        free = asker.answer(Ask(probe.case, "real", view, wording.hear))
        said.append(answer)
        heard.append(any(claims(answer, x) for x in exam.cases[probe.case].heard))
        if probe.kind:
            echoes.append(claims(answer, probe.label))
        found = {
            "naming": claims(free, probe.label),
            "words": yes_or_no(answer),
            "pope": pope_yes_or_no(answer),
            "likelihood": preference > 0,
        }
        preferred[probe.case].append(preference)
        clip = exam.cases[probe.case].name
        for name, verdict in found.items():
            rows[name].append(Verdict(clip, not probe.kind, probe.kind, verdict))
    report: Report = {name: pope(verdicts) for name, verdicts in rows.items()}
    report["likelihood"]["ranked"] = ranked([(a, b) for a, b in preferred.values()])
    report |= {"names_heard": score(heard), "echoes": score(echoes)}
    return report | {"answers": _common(said)}


def _common(said: Sequence[str]) -> dict[str, int]:
    return dict(collections.Counter(said).most_common(COMMON))


def draw(report: Report, path: str | Path) -> None:
    """Writes a PNG: sounds named right over the length of the audio features, with 95 % bands.

    Dashed: named, maybe among others.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    rows = sorted(report["scales"], key=lambda row: row["scale"])
    for number, view in enumerate(v for v in VIEWS if v in report["conditions"]):
        _line(ax, rows, view, f"C{number}", "os"[number])
    ax.axhline(report["chance"], color="0.5", linestyle=":", linewidth=1, label="chance")
    ax.axvline(report["own_scale"], color="0.8", linewidth=1, label="the model's own")
    ticks = [row["scale"] for row in rows]
    ax.set_xscale("symlog", linthresh=0.5, linscale=0.4)
    ax.set_xlim(ticks[0] - 0.1, 1.15 * ticks[-1] + 0.1)
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("length of the audio features")
    ax.set_ylabel("sound named right, and no other")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _line(ax: Any, rows: Sequence[Report], view: str, colour: str, marker: str) -> None:
    scales, scores = [r["scale"] for r in rows], [r[view] for r in rows]
    style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.3}
    ax.plot(scales, [s["accuracy"] for s in scores], label=VIEWS[view], **style)
    among = [s["among"]["accuracy"] for s in scores]
    ax.plot(scales, among, label="    maybe among others", **style | {"linestyle": "--"})
    low, high = ([s[end] for s in scores] for end in ("low", "high"))
    ax.fill_between(scales, low, high, color=colour, alpha=0.18, linewidth=0)
