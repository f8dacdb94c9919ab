"""Files of questions and of answers, a JSON object a line."""

import collections
import dataclasses
import json
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vljax.generate.engine import Request
from vljax.generate.media import Media, Span
from vljax.generate.sampling import Sampling
from vljax.store import write_whole

PICTURES = ("media", "video", "image")
FIELDS = (*PICTURES, "audio", "id", "question", "conversation", "sampling", "look", "listen")
ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
Answer = dict[str, Any]  # {"id", "question", "answer", "model"} or {"id", "error"}
Files = tuple[Path | None, Path | None, Span | None]  # to look at, to listen to, of both


class RowError(ValueError):
    """What is wrong with a row, in a sentence."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
      look, listen: the files whose picture and whose sound belong to it.
      history: the turns before the question, (role, text) pairs. seed: of its sampling.
      span: the seconds of the files that belong to it, from where to where; None is all.
    """

    id: str | int
    question: str
    look: Path | None = None
    listen: Path | None = None
    history: tuple[tuple[str, str], ...] = ()
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    span: Span | None = None

    @property
    def files(self) -> Files:
        return self.look, self.listen, self.span

    def request(self, media: Media | None) -> Request:
        return Request(self.question, media, self.history)


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that can't be asked, and why. One without an id is called by its line."""

    id: str | int
    error: str


@dataclasses.dataclass(frozen=True)
class Requests:
    """The rows of a file, in its order; ``unread``: fields that mean nothing, with their counts."""

    rows: Sequence[Row | BadRow]
    unread: Mapping[str, int]


def read_requests(path: Path, root: Path, sampling: Sampling = Sampling()) -> Requests:
    """Parses every line; a bad one becomes a BadRow.

    Args:
      root: where paths that are not absolute begin. sampling: where a row does not say its own.
    """
    rows: list[Row | BadRow] = []
    unread: collections.Counter[str] = collections.Counter()
    lines: dict[str, int] = {}  # by id
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        name: str | int = f"line {number}"
        try:
            fields = _object(line)
            given = _id(fields)
            if first := lines.get(key(given)):
                raise RowError(f"id: {given!r} is line {first}'s already; give each row its own")
            name = given
            rows.append(parse_row(name, fields, root, sampling))
            unread.update(fields.keys() - set(FIELDS))
        except ValueError as error:
            rows.append(BadRow(name, f"line {number}: {error}"))
        lines[key(name)] = number
    return Requests(rows, unread)


def key(id: str | int) -> str:
    """An id as a key: 1 and "1" are two."""
    return json.dumps(id)


def _object(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise RowError(f"is no JSON ({error}); mend it") from error
    if not isinstance(fields, dict):
        raise RowError(f"got a JSON {type(fields).__name__}, expected an object with id, question")
    return fields


def _id(fields: Mapping[str, Any]) -> str | int:
    id = fields.get("id")
    if not isinstance(id, str | int) or isinstance(id, bool):
        raise RowError(f"id: got {id!r}, expected a text or a whole number that no other row has")
    return id


def parse_row(
    id: str | int, fields: Mapping[str, Any], root: Path, sampling: Sampling = Sampling()
) -> Row:
    """One question of a line's fields. Raises RowError, and ValueError for its sampling."""
    look, listen = _files(fields, root)
    question, history = _words(fields)
    return Row(id, question, look, listen, history, *_sampling(fields, sampling))


def as_request(
    given: Mapping[str, Any] | tuple[str | Path, str],
    senses: Callable[[bool, bool], tuple[bool, bool]],
    read: Callable[[Path | None, Path | None], Media | None],
) -> Request:
    """A request that is given as a line's fields or as a file and a question, its media read.

    ``senses``: which of those asked for there are. Raises RowError and MediaError.
    """
    if isinstance(given, tuple):
        given = {"media": given[0], "question": given[1]}
    fields = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
    if "sampling" in fields:
        raise RowError("sampling: is all requests' own here; give it beside them")
    row = parse_row("", fields, Path())
    sees, hears = senses(row.look is not None, row.listen is not None)
    return row.request(read(row.look if sees else None, row.listen if hears else None))


def _files(fields: Mapping[str, Any], root: Path) -> tuple[Path | None, Path | None]:
    """The picture's file and the sound's."""
    given = [name for name in PICTURES if fields.get(name) is not None]
    if len(given) > 1:
        raise RowError(f"got {' and '.join(given)}, expected one of {', '.join(PICTURES)}")
    paths = {}
    for name in (*given, "audio"):
        value = fields.get(name)
        if value is not None and (not isinstance(value, str) or not value):
            raise RowError(f"{name}: got {value!r}, expected a path")
        paths[name] = None if value is None else root / value
    picture = paths[given[0]] if given else None
    sound = paths["audio"] or (None if given == ["image"] else picture)
    look, listen = (_flag(fields, name) for name in ("look", "listen"))
    return picture if look else None, sound if listen else None


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, True)
    if not isinstance(value, bool):
        raise RowError(f"{name}: got {value!r}, expected true or false")
    return value


def _words(fields: Mapping[str, Any]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The question, and what was said before."""
    question, turns = fields.get("question"), fields.get("conversation")
    if (question is None) == (turns is None):
        raise RowError("got no question, or two; expected question or conversation")
    if question is not None:
        return _text(question, "question"), ()
    if not isinstance(turns, list) or not turns:
        raise RowError(f"conversation: got {turns!r}, expected a list of turns")
    said = tuple(_turn(turn) for turn in turns)
    if any((role == "human") != (i % 2 == 0) for i, (role, _) in enumerate(said)):
        raise RowError("conversation: expected human and gpt by turns, a human first")
    if said[-1][0] != "human":
        raise RowError("conversation: ends with an answer, expected a question to answer")
    return said[-1][1], said[:-1]


def _turn(turn: Any) -> tuple[str, str]:
    """LLaVA's {"from", "value"}, or {"role", "content"}."""
    if isinstance(turn, dict):
        role = ROLES.get(str(turn.get("from", turn.get("role"))))
        if role is not None:
            return role, _text(turn.get("value", turn.get("content")), "conversation")
    raise RowError(
        f'conversation: got {turn!r}, expected {{"from": "human" or "gpt", "value": text}}'
    )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{name}: got {value!r}, expected words")
    return value


def _sampling(fields: Mapping[str, Any], default: Sampling) -> tuple[Sampling, int]:
    """A row's own, and its seed."""
    given = fields.get("sampling") or {}
    if not isinstance(given, dict):
        raise RowError(f"sampling: got {given!r}, expected an object")
    kinds = {**typing.get_type_hints(Sampling), "seed": int}
    for name, value in given.items():
        if name not in kinds:
            raise RowError(f"sampling: got {name!r}, expected some of {', '.join(kinds)}")
        kind = kinds[name]
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise RowError(f"{name}: got {value!r}, expected a {'whole ' * (kind is int)}number")
    seed = given.get("seed", 0)
    rest = {name: value for name, value in given.items() if name != "seed"}
    return dataclasses.replace(default, **rest), seed


def read_answers(path: Path) -> dict[str, Answer]:
    """What a file of answers holds, by id's ``key``; without its last line if half of it is there.

    Raises ValueError for a file that is something else.
    """
    if not path.exists():
        return {}
    found: dict[str, Answer] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            answer = json.loads(line)
            found.setdefault(key(answer["id"]), answer)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}: line {number} is no answer; name another file with --out, or mend it"
            ) from error
    return found


def shard_path(out: Path, process: int, count: int) -> Path:
    """Where one of ``count`` processes writes; ``out`` itself where it is the only one."""
    if count == 1:
        return out
    return out.with_name(f"{out.stem}.{process}-of-{count}{out.suffix}")


def read_shards(out: Path) -> dict[str, Answer]:
    """The answers of all processes that wrote beside ``out``."""
    paths = sorted(out.parent.glob(f"{out.stem}.*-of-*{out.suffix}"))
    return joined(map(read_answers, paths))


def joined(parts: Iterable[Mapping[str, Answer]]) -> dict[str, Answer]:
    """The later of two counts; an error never takes the place of an answer."""
    found: dict[str, Answer] = {}
    for part in parts:
        found |= {k: a for k, a in part.items() if "error" not in a or k not in found}
    return found


def as_lines(answers: Iterable[Answer]) -> str:
    return "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)


def settle(path: Path, answers: Mapping[str, Answer], order: Collection[str]) -> None:
    """Makes ``path`` hold these answers in this order of keys, all or nothing."""
    text = as_lines(answers[k] for k in order if k in answers)
    if text.encode() != (path.read_bytes() if path.exists() else b""):
        write_whole(path, text)
