"""An opinion on predictions, asked of a language model behind an OpenAI-style endpoint.

Another judge, or the same one on another day, may say something else: what it says is kept word for
word with its name and the date, and its figure never goes without them.
"""

import dataclasses
import datetime
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vljax.evaluate import scores
from vljax.generate.rows import Answer, as_lines, key, read_answers, settle

SYSTEM = (
    "You compare an answer to a question about a video with the answer that is known to be right. "
    "Judge the meaning and not the wording: other words for the same thing are right, an answer "
    "that leaves the asked-for thing open or contradicts the known one is wrong, and what an "
    "answer adds does not count unless it contradicts. Reply with one JSON object and nothing "
    'else: {"correct": "yes" or "no", "score": a whole number from 0 (nothing in common) to 5 '
    "(the same meaning)}."
)
USER = "Question: {question}\nKnown answer: {answer}\nAnswer to judge: {pred}"
PATIENCE = (1.0, 4.0, 16.0)  # seconds between tries of a call that failed
REFUSED = 400, 401, 403, 404, 422


@dataclasses.dataclass(frozen=True)
class Judge:
    """Where and who it is.

    Attributes:
      endpoint: the URL; /v1/chat/completions is added where it has no such end.
      key: for the Authorization header, "" for none. seconds: that a reply may take.
    """

    endpoint: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    seconds: float = 60.0

    @property
    def url(self) -> str:
        base = self.endpoint.rstrip("/")
        if base.endswith("/chat/completions"):
            return base
        return f"{base}/chat/completions" if base.endswith("/v1") else f"{base}/v1/chat/completions"

    def ask(self, row: Answer) -> dict[str, Any]:
        """The endpoint's whole reply. Raises OSError where none is to be had."""
        words = {name: _words(row[name]) for name in ("question", "answer", "pred")}
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": USER.format(**words)},
        ]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 100}
        for wait in (*PATIENCE, None):
            try:
                return self._post(body)
            except (OSError, ValueError, http.client.HTTPException) as error:
                if _final(error) or wait is None:
                    raise OSError(
                        f"{self.url}: {_reason(error)}; what was judged is kept, the same command "
                        "goes on"
                    ) from error
                time.sleep(wait)
        raise AssertionError("every try returns or raises")

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.seconds) as reply:
            found = json.load(reply)
        if not isinstance(found, dict):
            raise ValueError(f"got a JSON {type(found).__name__}, expected a completion")
        return found


def _words(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else " / ".join(value)


def _final(error: Exception) -> bool:
    """Whether another try gives the same."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in REFUSED
    return isinstance(error, http.client.InvalidURL)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        told = " ".join(error.read()[:300].decode(errors="replace").split())
        return f"HTTP {error.code}: {told}"
    return f"{type(error).__name__}: {error}"


def parse(reply: Mapping[str, Any]) -> tuple[bool, int] | None:
    """What a reply says: yes or no, and the score; None where it is not as it was asked for."""
    try:
        text = reply["choices"][0]["message"]["content"]
        found = json.loads(re.sub(r"^\s*```(?:json)?|```\s*$", "", text))
        correct, score = found["correct"], found["score"]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if correct not in ("yes", "no") or type(score) is not int or not 0 <= score <= 5:
        return None
    return correct == "yes", score


def judge(
    judge: Judge,
    answers: Sequence[Answer],
    out: Path,
    show: Callable[[int], None] = lambda done: None,
    retry: bool = False,
) -> list[Answer]:
    """Replies to all answers, in their order; those in ``out`` are not asked for again.

    A reply is {"id", "pred", "judge", "endpoint", "date", "reply"}, the last as it came. ``retry``:
    what could not be read is asked again. Raises ValueError where ``out`` holds another judge's, or
    replies to other answers; OSError where the endpoint does not reply.
    """
    kept = read_answers(out)
    _require_same(out, kept, answers, judge)
    if retry:
        kept = {k: reply for k, reply in kept.items() if parse(reply["reply"])}
    order = [key(row["id"]) for row in answers]
    settle(out, kept, order)
    with out.open("a", encoding="utf-8") as file:
        for row in answers:
            if key(row["id"]) in kept:
                continue
            about = {"id": row["id"], "pred": row["pred"], "judge": judge.model}
            reply = judge.ask(row)
            now = datetime.datetime.now(datetime.UTC).date().isoformat()
            kept[key(row["id"])] = about | {"endpoint": judge.url, "date": now, "reply": reply}
            file.write(as_lines([kept[key(row["id"])]]))
            file.flush()
            show(len(kept))
    settle(out, kept, order)
    return [kept[k] for k in order]


def _require_same(
    out: Path, kept: Mapping[str, Answer], answers: Sequence[Answer], judge: Judge
) -> None:
    preds = {key(row["id"]): row["pred"] for row in answers}
    for k, reply in kept.items():
        if reply.get("judge") != judge.model:
            what = f"replies of judge {reply.get('judge')!r}, asked is {judge.model!r}"
        elif k not in preds or reply.get("pred") != preds[k]:
            what = f"a reply to another answer of {k}"
        else:
            continue
        raise ValueError(f"{out}: holds {what}; name another file with --out")


def verdict(replies: Sequence[Answer], videos: Mapping[str, str]) -> dict[str, Any]:
    """The figures with whose they are: {"judge", "dates", "correct", "score", "unreadable", ...}.

    ``videos``: by the ``key`` of the id.
    """
    read = [(r, found) for r in replies if (found := parse(r["reply"]))]
    clips = [videos[key(r["id"])] for r, _ in read]
    made: dict[str, Any] = {
        "judge": replies[0]["judge"],
        "endpoint": replies[0]["endpoint"],
        "dates": sorted({r["date"] for r in replies}),
        "answered_as": sorted({str(r["reply"].get("model", "")) for r in replies} - {""}),
        "judged": len(read),
        "unreadable": [r["id"] for r in replies if not parse(r["reply"])],
    }
    if read:
        made["correct"] = scores.figure([float(yes) for _, (yes, _) in read], clips)
        made["score"] = scores.figure([float(score) for _, (_, score) in read], clips)
    return made


def told(made: Mapping[str, Any]) -> str:
    """In a sentence, which names the judge and the date."""
    first, last = made["dates"][0], made["dates"][-1]
    whose = f"judge {made['judge']} ({first if first == last else f'{first} to {last}'})"
    lost = made["unreadable"]
    rest = ""
    if lost:
        names = ", ".join(map(str, lost))
        rest = f"; {len(lost)} replies are not as asked for and in no figure: {names}"
    if not made["judged"]:
        return f"{whose}: no reply could be read{rest}"
    yes, score = made["correct"], made["score"]
    return (
        f"{whose}: {100 * yes['value']:.1f} % right ({100 * yes['low']:.1f} to "
        f"{100 * yes['high']:.1f}), score {score['value']:.2f} of 5 ({score['low']:.2f} to "
        f"{score['high']:.2f}), n = {made['judged']}{rest}"
    )
