"""Test sets as people have them: questions with answers, choices, captions.

What of them can't be asked or has no answer is named, never left out in silence.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vljax.data.examples import AnnotationError
from vljax.data.sources import open_text, read_json, read_table, rows_with
from vljax.data.video import CLIP_SUFFIXES, IMAGE_SUFFIXES
from vljax.generate.media import Span
from vljax.generate.rows import BadRow, Row, key
from vljax.generate.sampling import Sampling

SUFFIXES = (*CLIP_SUFFIXES, *IMAGE_SUFFIXES, ".wav", ".mp3", ".flac", ".m4a", ".ogg")
FOREVER = 1e9  # seconds
SHORT = Sampling(max_new_tokens=64)
CAPTION_COLUMNS = ("file_name", "text")
WEBVID_COLUMNS = ("videoid", "name", "page_dir")


@dataclasses.dataclass(frozen=True)
class Item:
    """One question with what is right.

    Attributes:
      asked: the words that the model is given. answers: of which any is right.
      candidates: its own, one of them right. kind: by which figures are told apart, "" for none.
      video: as its data set names it.
    """

    row: Row
    asked: str
    answers: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    kind: str = ""
    video: str = ""


@dataclasses.dataclass(frozen=True)
class Questions:
    """Items and what is wrong with the others, in the files' order.

    Attributes:
      unasked: answers that no question is for, by what names them.
    """

    rows: Sequence[Item | BadRow]
    unasked: Sequence[str] = ()

    @property
    def items(self) -> dict[str, Item]:
        """By their rows' ``key``."""
        return {key(x.row.id): x for x in self.rows if isinstance(x, Item)}

    @property
    def asked(self) -> list[Row | BadRow]:
        return [x.row if isinstance(x, Item) else x for x in self.rows]


@dataclasses.dataclass(frozen=True)
class Asking:
    """How a set is put to the model.

    Attributes:
      wording: of a question, with {question} in it. options: whether choices are listed below it.
      senses: whether it looks, whether it listens.
    """

    sampling: Sampling = SHORT
    wording: str = "{question}"
    options: bool = False
    senses: tuple[bool, bool] = (True, True)

    def __post_init__(self) -> None:
        if "{question}" not in self.wording:
            raise ValueError(f"wording: got {self.wording!r}, expected {{question}} within it")

    def words(self, question: str, candidates: Sequence[str] = ()) -> str:
        lines = [self.wording.replace("{question}", question)]
        if self.options:
            lines += [f"({letter}) {c}" for letter, c in zip(letters(), candidates, strict=False)]
            lines += ["Answer with one of these."]
        return "\n".join(lines)

    def item(
        self,
        id: str | int,
        question: str,
        video: str,
        path: Path,
        answers: Sequence[str],
        candidates: Sequence[str] = (),
        kind: str = "",
        span: Span | None = None,
    ) -> Item:
        look, listen = (path if wanted else None for wanted in self.senses)
        row = Row(id, question, look, listen, sampling=self.sampling, span=span)
        words = self.words(question, candidates)
        return Item(row, words, tuple(answers), tuple(candidates), kind, video)


def letters() -> Iterator[str]:
    """A, B, ..., Z, AA, AB, ..."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    yield from alphabet
    yield from (a + b for a in alphabet for b in alphabet)


class Folder:
    """Media in a folder and those below it, found by the names that annotations give them."""

    def __init__(self, root: Path):
        if not root.is_dir():
            raise AnnotationError(f"{root}: not there; name the folder of the clips: --media DIR")
        self.root = root
        order = {suffix: i for i, suffix in enumerate(SUFFIXES)}
        found = [p for p in root.rglob("*") if p.suffix.lower() in order and p.is_file()]
        found.sort(key=lambda p: (len(p.parts), p.parent, p.stem, order[p.suffix.lower()], p.name))
        self._by_name: dict[str, Path] = {}
        for path in found:
            for name in (path.relative_to(root).with_suffix("").as_posix(), path.stem):
                self._by_name.setdefault(name, path)

    def find(self, name: str) -> Path:
        """By its path below the folder, or a name, with or without a suffix or ActivityNet's v_.

        The first of the usual suffixes counts, and what lies least deep. Where there is none, the
        path that a reader will say is missing.
        """
        if (self.root / name).is_file():
            return self.root / name
        whole = name.rsplit(".", 1)
        stems = [name, *whole[:1]] if f".{whole[-1].lower()}" in SUFFIXES else [name]
        tried = [start + stem for stem in stems for start in ("", "v_")]
        paths = (self._by_name.get(stem) for stem in tried)
        return next(filter(None, paths), self.root / name)


def read_qa(questions: Path, answers: Path, media: Folder, asking: Asking) -> Questions:
    """MSVD-QA's, MSRVTT-QA's, ActivityNet-QA's test_q.json and test_a.json."""
    given: dict[str, Mapping[str, Any]] = {}
    for i, row in enumerate(_records(answers, ("question_id",))):
        if given.setdefault(key(row["question_id"]), row) is not row:
            raise AnnotationError(
                f"{answers}: record {i}: question_id {row['question_id']!r} is there twice"
            )
    rows: list[Item | BadRow] = []
    ids: set[str] = set()
    for i, row in enumerate(_records(questions, ("question", "video_name", "question_id"))):
        id = row["question_id"]
        found = given.get(key(id), {})
        answer, video = _words(found.get("answer")), str(row["video_name"])
        if key(id) in ids:
            rows.append(BadRow(f"record {i}", f"question_id {id!r} is another question's, too"))
        elif not answer:
            rows.append(BadRow(id, f"{id!r} has no answer in {answers.name}"))
        elif not _words(row["question"]):
            rows.append(BadRow(id, f"{id!r} has no question in {questions.name}"))
        else:
            path, kind = media.find(video), str(found.get("type", ""))
            rows.append(asking.item(id, str(row["question"]), video, path, [answer], kind=kind))
        ids.add(key(id))
    return Questions(rows, [str(json.loads(k)) for k in given if k not in ids])


def read_choices(lists: Sequence[Path], media: Folder, asking: Asking) -> Questions:
    """MVBench's lists, [{video, question, candidates, answer, start?, end?}].

    With several, an id begins with its list's name, which is the kind of its questions, too.
    """
    rows: list[Item | BadRow] = []
    for path in lists:
        kind = path.stem if len(lists) > 1 else ""
        for i, row in enumerate(_records(path, ("video", "question", "candidates", "answer"))):
            id: str | int = f"{kind}/{i}" if kind else i
            try:
                rows.append(_choice(id, row, media, asking, kind))
            except ValueError as error:
                rows.append(BadRow(id, f"{path.name}, record {i}: {error}"))
    return Questions(rows)


def _choice(
    id: str | int, row: Mapping[str, Any], media: Folder, asking: Asking, kind: str
) -> Item:
    answer, question, video = _words(row["answer"]), _words(row["question"]), str(row["video"])
    given = row["candidates"]
    candidates = [_words(c) for c in given] if isinstance(given, list) else []
    if len(candidates) < 2 or not all(candidates) or len(set(candidates)) < len(candidates):
        raise ValueError(f"candidates: got {given!r}, expected several, no two alike")
    if answer not in candidates:
        raise ValueError(f"answer: got {row['answer']!r}, expected one of {candidates}")
    if not question:
        raise ValueError("has no question")
    path, span = media.find(video), _span(row)
    return asking.item(id, question, video, path, [answer], candidates, kind, span)


def _span(row: Mapping[str, Any]) -> Span | None:
    if row.get("start") is None and row.get("end") is None:
        return None
    given = (row.get("start"), 0.0), (row.get("end"), FOREVER)
    try:
        start, end = (instead if value is None else float(value) for value, instead in given)
    except (TypeError, ValueError):
        start = end = 0.0
    if not 0 <= start < end:
        raise ValueError(
            f"start and end: got {row.get('start')!r} and {row.get('end')!r}, expected seconds, "
            "the start first"
        )
    return start, min(end, FOREVER)


def read_captions(path: Path, media: Folder, question: str, asking: Asking) -> Questions:
    """Captions of clips: a table (.csv, .tsv) or an object a line (.jsonl).

    Columns are file_name and text, or WebVid's videoid, name and page_dir. A file that is there
    several times, or a text that is a list, has several captions of which any is right.
    """
    captions: dict[str, list[str]] = collections.defaultdict(list)
    for name, text in _captions(path):
        captions[name] += text if isinstance(text, list) else [text]
    rows: list[Item | BadRow] = []
    for name, texts in captions.items():
        right = list(filter(None, map(_words, texts)))
        if right:
            rows.append(asking.item(name, question, name, media.find(name), right))
        else:
            rows.append(BadRow(name, f"{name!r} has no caption in {path.name}"))
    return Questions(rows)


def _captions(path: Path) -> Iterator[tuple[str, Any]]:
    rows = read_table(path)
    webvid = bool(rows) and WEBVID_COLUMNS[0] in rows[0]
    names = ("page_dir", "videoid") if webvid else ("file_name",)
    for i, row in enumerate(rows_with(path, rows, WEBVID_COLUMNS if webvid else CAPTION_COLUMNS)):
        for column in names:
            if not isinstance(row[column], str | int | float):  # None, where a line is too short
                raise AnnotationError(
                    f"{path}: record {i}: {column}: got {row[column]!r}, expected a name; mend it"
                )
        if webvid:
            yield (Path(str(row["page_dir"])) / str(row["videoid"])).as_posix(), row["name"]
        else:
            yield str(row["file_name"]), row["text"]


def common_answers(items: Iterable[Item], most: int) -> list[str]:
    """The answers that are right most often, at most so many; of equals, the first there are."""
    counts = collections.Counter(item.answers[0] for item in items)
    return [answer for answer, _ in counts.most_common(most)]


def read_candidates(path: Path) -> list[str]:
    """An answer a line, or a JSON list."""
    if path.suffix == ".json":
        given = read_json(path)
        if not isinstance(given, list):
            raise AnnotationError(f"{path}: got {given!r:.60}, expected a list of answers")
    else:
        with open_text(path) as file:
            given = file.read().splitlines()
    found = list(dict.fromkeys(filter(None, map(_words, given))))
    if len(found) < 2:
        raise AnnotationError(f"{path}: got {len(found)} candidates, expected several")
    return found


def _words(value: Any) -> str:
    """A text or a number as one, without blanks around it; "" for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value).strip()


def _records(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    return rows_with(path, read_json(path), columns)
