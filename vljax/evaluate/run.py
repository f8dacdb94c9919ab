"""A test set put to a model: its answers, and how likely right ones are; then the figures.

Each question is asked three times: about its clip, about a blank one (grey frames, no sound), and
without any. What a model scores on the last two it has not seen.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from vljax.evaluate import scores
from vljax.evaluate.sets import Item, Questions
from vljax.generate.batch import Rows, answer_each, with_media
from vljax.generate.engine import Engine, Request
from vljax.generate.likelihood import Likelihood, log_likelihoods
from vljax.generate.media import Encoded, Media
from vljax.generate.probe import GREY, silence
from vljax.generate.rows import Answer, Files, Row, key
from vljax.models.sizes import VideoLlamaSize
from vljax.store import write_whole

DIGITS = 3  # of nats: further ones depend on the machine
GIVEN = {"clip": "the clip", "blank": "blank video", "text": "text only"}
MEASURES = {
    "exact": "exact match",
    "contains": "contains the answer",
    "f1": "token F1",
    "matched": "generated answer matches",
    "by_sum": "likeliest candidate",
    "by_mean": "likeliest candidate, a token",
    "nats": "log-likelihood of the answer, nats a token",
}
Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Examiner:
    """Answers batches of a ``Job`` with what is to be written of each row.

    {"id", "question", "answer", "pred", "model", "video", ...}; ``answer`` is a list where several
    are right. "nats": of the right answers, a token. Where there are candidates, "by_sum" and
    "by_mean" are the likeliest of them, by their log-likelihood and by that of a token; of an
    item's own, "candidates" has [log-likelihood, tokens] of each. "blank" and "text" hold the same
    of the question without the clip.

    Attributes:
      items: by their rows' ``key``. candidates: of items that have none of their own.
    """

    items: Mapping[str, Item]
    candidates: Sequence[str] = ()
    baselines: bool = True

    def __call__(
        self, engine: Engine, rows: Rows, media: dict[Files, Future], model: str
    ) -> dict[str, Answer]:
        engine.forget()
        asked, failed = with_media(rows, media)
        results: dict[str, Answer] = {key(row.id): {} for row in rows}
        for row, _ in asked:
            item = self.items[key(row.id)]
            results[key(row.id)] = {
                "id": row.id,
                "question": row.question,
                "answer": told(item.answers),
                "pred": "",
                "model": model,
                "video": item.video,
                **({"type": item.kind} if item.kind else {}),
            }
        for given in GIVEN if self.baselines else ("clip",):
            requests = [self._request(row, r, given, engine.size) for row, r in asked]
            for (row, _), one in zip(asked, self._say(engine, asked, requests), strict=True):
                if isinstance(one, ValueError):
                    failed[key(row.id)] = {"id": row.id, "error": str(one)}
                elif given == "clip":
                    results[key(row.id)] |= one
                else:
                    results[key(row.id)][given] = one
        return results | failed

    def _request(self, row: Row, request: Request, given: str, size: VideoLlamaSize) -> Request:
        media = request.media
        if given == "text":
            media = None
        elif given == "blank" and media is not None:
            media = blank(media, size)
        return dataclasses.replace(request, question=self.items[key(row.id)].asked, media=media)

    def _say(
        self, engine: Engine, asked: Sequence[tuple[Row, Request]], requests: Sequence[Request]
    ) -> list[Answer | ValueError]:
        """What there is to write of each, or why it can't be asked."""
        if not requests:
            return []
        said = answer_each(engine, requests, asked[0][0].sampling)
        good = [i for i, one in enumerate(said) if not isinstance(one, ValueError)]
        items = [self.items[key(asked[i][0].id)] for i in good]
        likely = _each_likely(engine, [requests[i] for i in good], [self._texts(x) for x in items])
        found: list[Answer | ValueError] = [x if isinstance(x, ValueError) else {} for x in said]
        for i, item, one in zip(good, items, likely, strict=True):
            found[i] = one if isinstance(one, ValueError) else self._told(item, said[i], one)
        return found

    def _texts(self, item: Item) -> list[str]:
        """The right answers and the candidates, each once."""
        return list(dict.fromkeys([*item.answers, *(item.candidates or self.candidates)]))

    def _told(self, item: Item, said: str | ValueError, likely: Sequence[Likelihood]) -> Answer:
        by_text = dict(zip(self._texts(item), likely, strict=True))
        right = [by_text[text] for text in item.answers]
        nats = math.fsum(r.nats for r in right) / sum(r.tokens for r in right)
        found: Answer = {"pred": said, "nats": round(nats, DIGITS)}
        if candidates := item.candidates or self.candidates:
            found["by_sum"] = max(candidates, key=lambda text: by_text[text].nats)
            found["by_mean"] = max(candidates, key=lambda text: by_text[text].each)
        if item.candidates:
            each = {text: by_text[text] for text in item.candidates}
            found["candidates"] = {t: [round(r.nats, DIGITS), r.tokens] for t, r in each.items()}
        return found


def told(answers: Sequence[str]) -> str | list[str]:
    return answers[0] if len(answers) == 1 else list(answers)


def blank(media: Media | Encoded, size: VideoLlamaSize) -> Media:
    """As many frames, all grey, and no sound where there was one."""
    assert isinstance(media, Media), "files are read, not encoded"
    frames = None if media.frames is None else np.full_like(media.frames, GREY)
    return dataclasses.replace(
        media, frames=frames, mel=None if media.mel is None else silence(size)
    )


def _each_likely(
    engine: Engine, requests: Sequence[Request], texts: Sequence[Sequence[str]]
) -> list[list[Likelihood] | ValueError]:
    """How likely each text of each request is; where one is too long, its error."""
    pairs = [(r, text) for r, many in zip(requests, texts, strict=True) for text in many]
    try:
        found = iter(log_likelihoods(engine, [r for r, _ in pairs], [text for _, text in pairs]))
    except ValueError as error:
        if len(requests) == 1:
            return [error]
        pairs_ = zip(requests, texts, strict=True)
        return [x for r, many in pairs_ for x in _each_likely(engine, [r], [many])]
    return [[next(found) for _ in many] for many in texts]


def grade(item: Item, found: Answer) -> dict[str, float]:
    """What an answer is worth, by the measures that there are for it."""
    graded: dict[str, float] = {}
    if item.candidates:
        at = scores.chosen(found["pred"], item.candidates)
        graded["matched"] = float(at is not None and item.candidates[at] in item.answers)
    else:
        graded["exact"] = scores.exact(found["pred"], item.answers)
        graded["contains"] = scores.contains(found["pred"], item.answers)
        graded["f1"] = scores.token_f1(found["pred"], item.answers)
    for name in ("by_sum", "by_mean"):
        if name in found:
            graded[name] = float(found[name] in item.answers)
    return graded | ({"nats": found["nats"]} if "nats" in found else {})


def report(questions: Questions, answers: Mapping[str, Answer], about: Mapping[str, Any]) -> Report:
    """The figures of what was answered, and the names of what was not.

    Args:
      answers: by their rows' ``key``. about: of the model and how it was asked.
    """
    items = questions.items
    rows = [(items[k], a) for k, a in answers.items() if "error" not in a]
    failed = [{"id": a["id"], "error": a["error"]} for a in answers.values() if "error" in a]
    kinds = sorted({item.kind for item, _ in rows} - {""})
    own = [len(item.candidates) for item, _ in rows if item.candidates]
    more: dict[str, float] = {}
    if own:
        more["chance"] = round(sum(1 / n for n in own) / len(own), 4)
    if rows and (shared := about.get("candidates")):
        among = sum(not set(item.answers).isdisjoint(shared) for item, _ in rows)
        more["right_among_candidates"] = round(among / len(rows), 4)
    return {
        **about,
        "questions": len(questions.rows),
        "answered": len(rows),
        "failed": failed,
        "unasked": list(questions.unasked),
        **more,
        "normalisation": scores.NORMALISATION,
        "interval": f"95 %, {scores.DRAWS} bootstrap draws of clips, seed 0",
        "figures": figures(rows),
        "types": {kind: figures([x for x in rows if x[0].kind == kind]) for kind in kinds},
    }


def figures(rows: Sequence[tuple[Item, Answer]]) -> dict[str, dict[str, Any]]:
    """{measure: {"clip": figure, "blank": figure, "text": figure}}, of what is there."""
    found: dict[str, dict[str, Any]] = {}
    for given in GIVEN:
        graded = [
            (grade(item, part), item.video)
            for item, answer in rows
            if (part := answer if given == "clip" else answer.get(given))
        ]
        for measure in MEASURES:
            values = [(g[measure], video) for g, video in graded if measure in g]
            if values:
                found.setdefault(measure, {})[given] = scores.figure(*zip(*values, strict=True))
    return {measure: found[measure] for measure in MEASURES if measure in found}


def table(made: Report) -> str:
    """The figures in Markdown, those of each type below."""
    heads = [GIVEN[g] for g in GIVEN]
    lines = [
        f"| | {heads[0]} | 95 % interval | {heads[1]} | {heads[2]} | n |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(name, MEASURES[name], row) for name, row in made["figures"].items()]
    for kind, rows in made["types"].items():
        lines += [_line(name, f"{kind}: {MEASURES[name]}", row) for name, row in rows.items()]
    return "\n".join(lines)


def _line(measure: str, label: str, row: Mapping[str, Mapping[str, Any]]) -> str:
    def shown(value: float) -> str:
        return f"{value:.2f}" if measure == "nats" else f"{100 * value:.1f} %"

    clip = row["clip"]
    rest = [shown(row[g]["value"]) if g in row else "" for g in ("blank", "text")]
    interval = f"{shown(clip['low'])} to {shown(clip['high'])}"
    return f"| {' | '.join([label, shown(clip['value']), interval, *rest, str(clip['n'])])} |"


def summary(made: Report) -> str:
    """The table with what it is of, and what is missing in it, in Markdown."""
    lines = [
        f"# {made['set']}: {made['model']}",
        "",
        f"{made['answered']} of {made['questions']} questions answered.",
        "",
        table(made),
        "",
        f"Exact match, contains and F1 after normalisation: {made['normalisation']}. "
        f"Intervals: {made['interval']}. Blank video: grey frames, no sound.",
    ]
    if "chance" in made:
        lines += [f"Chance: {100 * made['chance']:.1f} %."]
    if "right_among_candidates" in made:
        share = 100 * made["right_among_candidates"]
        lines += [
            f"A right answer is among the {len(made['candidates'])} candidates: {share:.1f} %."
        ]
    if made["failed"]:
        lines += ["", "Not answered, and in no figure:", ""]
        lines += [f"- {row['id']}: {row['error']}" for row in made["failed"]]
    if made["unasked"]:
        lines += ["", f"Answers without a question: {', '.join(made['unasked'])}"]
    return "\n".join(lines) + "\n"


def settle_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes down how a set is asked; raises ValueError where the folder is of another way."""
    path, text = folder / "asked.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        other = [n for n in kept.keys() | about.keys() if kept.get(n) != about.get(n)]
        if other:
            name = min(other)
            raise ValueError(
                f"{folder}: was begun with {name} {kept.get(name)!r}, asked for is "
                f"{about.get(name)!r}; name another folder with --out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def require_same_answers(path: Path, items: Mapping[str, Item], kept: Mapping[str, Answer]) -> None:
    """Raises ValueError where a row had another right answer or candidates when it was answered."""
    for k, answer in kept.items():
        if "error" in answer:
            continue
        right, candidates = told(items[k].answers), list(items[k].candidates)
        if answer["answer"] != right:
            what = f"was right with {answer['answer']!r}, is now with {right!r}"
        elif (before := list(answer.get("candidates", ()))) != candidates:
            what = f"had the candidates {before}, now has {candidates}"
        else:
            continue
        raise ValueError(f"{path}: {k} {what}; name another folder with --out")
