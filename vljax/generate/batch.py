"""Many questions from a file: answered in batches, written down as they are done."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from vljax.data.decode_worker import Decoders
from vljax.data.quarantine import BAD, reason
from vljax.generate.engine import Engine, Request
from vljax.generate.media import read_pair
from vljax.generate.rows import (
    Answer,
    BadRow,
    Files,
    Row,
    as_lines,
    joined,
    key,
    read_answers,
    read_shards,
    settle,
    shard_path,
)
from vljax.generate.sampling import Sampling

Rows = Sequence[Row | BadRow]
# What a batch becomes, by the ``key`` of each row's id; the last one is the model's name.
Answering = Callable[[Engine, Rows, dict[Files, Future], str], dict[str, Answer]]


@dataclasses.dataclass
class Job:
    """One process's part of the rows, what is answered of it, and the file of the answers.

    Attributes:
      answers: by ``key`` of their id. kept: how many of them were there before.
    """

    rows: Rows
    out: Path
    model: str
    answers: dict[str, Answer]
    kept: int

    @classmethod
    def open(
        cls,
        rows: Rows,
        out: Path,
        model: str,
        process: tuple[int, int],
        retry: bool = False,
        block: int = 1,
    ) -> "Job":
        """Reads what is there; a half-written last line is dropped.

        Alone (process 0 of 1) it takes over what several processes wrote. ``retry``: rows that
        failed are asked again. ``block``: so many rows on end are one process's: where it is the
        batch, that of a row is the same for any number of processes. Raises ValueError for answers
        that are not to these rows.
        """
        blocks = [rows[i : i + block] for i in range(0, len(rows), block)]
        part = [row for block in blocks[process[0] :: process[1]] for row in block]
        path = shard_path(out, *process)
        kept = read_answers(path)
        if process[1] == 1:
            kept = joined([read_shards(out), kept])
        if retry:
            kept = {k: answer for k, answer in kept.items() if "error" not in answer}
        _require_same(path, kept, part, model)
        path.parent.mkdir(parents=True, exist_ok=True)
        job = cls(part, path, model, kept, len(kept))
        job.settle()
        return job

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers.values() if "error" in answer]

    @property
    def done(self) -> bool:
        return len(self.answers) == len(self.rows)

    def settle(self) -> None:
        """Writes the file anew where it is not in the rows' order."""
        settle(self.out, self.answers, [key(row.id) for row in self.rows])

    def run(
        self,
        engine: Engine,
        decoders: Decoders,
        batch: int,
        show: Callable[[], None],
        answer: Answering | None = None,
    ) -> None:
        """Answers what is missing, by ``answer_rows`` if by nothing else.

        Batches are the rows' own, whatever was kept of them.
        """
        rows = limited(self.rows, engine)
        parts = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        parts = [part for part in parts if any(key(row.id) not in self.answers for row in part)]
        with self.out.open("a", encoding="utf-8") as file:
            for part, media in _read_ahead(parts, engine, decoders):
                answers = (answer or answer_rows)(engine, part, media, self.model)
                new = {k: a for k, a in answers.items() if k not in self.answers}
                self.answers |= new
                file.write(as_lines(new.values()))
                file.flush()
                show()
        self.settle()


def _require_same(out: Path, kept: dict[str, Answer], rows: Rows, model: str) -> None:
    asked = {key(row.id): getattr(row, "question", None) for row in rows}
    for k, answer in kept.items():
        if k not in asked:
            what = f"an answer to {k}, which is not asked here"
        elif "answer" not in answer:
            continue
        elif answer.get("question") != asked[k]:
            what = f"{k}'s answer to {answer.get('question')!r}, asked here is {asked[k]!r}"
        elif answer.get("model") != model:
            what = f"an answer of model {answer.get('model')!r}, asked here is {model!r}"
        else:
            continue
        raise ValueError(f"{out}: holds {what}; name another file with --out")


def limited(rows: Rows, engine: Engine) -> Rows:
    """The rows without the files for which the weights lack the sense; says so once.

    Raises WeightsError where they have none of the senses that are asked for.
    """
    asked = [row for row in rows if isinstance(row, Row)]
    look, listen = any(row.look for row in asked), any(row.listen for row in asked)
    sees, hears = engine.senses(look, listen)
    return [_limit(row, sees or not look, hears or not listen) for row in rows]


def _limit(row: Row | BadRow, sees: bool, hears: bool) -> Row | BadRow:
    if isinstance(row, BadRow) or not (row.look or row.listen):
        return row
    left = dataclasses.replace(
        row, look=row.look if sees else None, listen=row.listen if hears else None
    )
    if left.look or left.listen:
        return left
    file, verb = (row.look, "see") if row.look else (row.listen, "hear")
    return BadRow(row.id, f"{file}: these weights do not {verb}; convert those of that branch, too")


def _read_ahead(
    parts: Sequence[Rows], engine: Engine, decoders: Decoders
) -> Iterator[tuple[Rows, dict[Files, Future]]]:
    """Each part with its media on their way; the next part's are read while one is answered."""

    def begin(part: Rows) -> dict[Files, Future]:
        wanted = dict.fromkeys(row.files for row in part if isinstance(row, Row))
        return {
            (look, listen, span): decoders.submit(read_pair, look, listen, engine.size, span)
            for look, listen, span in wanted
            if look or listen
        }

    ahead = begin(parts[0]) if parts else {}
    for i, part in enumerate(parts):
        now, ahead = ahead, begin(parts[i + 1]) if i + 1 < len(parts) else {}
        yield part, now


def answer_rows(
    engine: Engine, rows: Rows, media: dict[Files, Future], model: str
) -> dict[str, Answer]:
    """An answer or an error for each row, by the ``key`` of its id, in their order.

    What is sampled is answered a row at a time: its draws would be others beside other rows.
    """
    results: dict[str, Answer] = {key(row.id): {} for row in rows}
    groups: dict[tuple[Sampling, int, str], list[tuple[Row, Request]]] = {}
    asked, failed = with_media(rows, media)
    for row, request in asked:
        alone = key(row.id) if row.sampling.temperature else ""
        groups.setdefault((row.sampling, row.seed, alone), []).append((row, request))
    for (sampling, seed, _), group in groups.items():
        said = answer_each(engine, [request for _, request in group], sampling, seed)
        for (row, _), one in zip(group, said, strict=True):
            if isinstance(one, ValueError):
                failed[key(row.id)] = {"id": row.id, "error": str(one)}
            else:
                about = {"id": row.id, "question": row.question}
                results[key(row.id)] = about | {"answer": one, "model": model}
    return results | failed


def with_media(
    rows: Rows, media: dict[Files, Future]
) -> tuple[list[tuple[Row, Request]], dict[str, Answer]]:
    """The rows that can be asked, and what is wrong with the others, by the ``key`` of their id."""
    asked, failed = [], {}
    for row in rows:
        if isinstance(row, BadRow):
            failed[key(row.id)] = {"id": row.id, "error": row.error}
            continue
        try:
            given = media.get(row.files)
            asked.append((row, row.request(None if given is None else given.result())))
        except BAD as error:
            failed[key(row.id)] = {"id": row.id, "error": _told(error, row)}
    return asked, failed


def _told(error: Exception, row: Row) -> str:
    """The reason, with a file's name; an answer that a decoder died of names none."""
    told, files = reason(error), [str(file) for file in (row.look, row.listen) if file]
    return told if any(file in told for file in files) else f"{files[0]}: {told}"


def answer_each(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, seed: int = 0
) -> list[str | ValueError]:
    """Answers; where a row can't be asked (its prompt is too long), its error."""
    try:
        return list(engine.answer(requests, sampling, seed))
    except ValueError as error:
        if len(requests) == 1:
            return [error]
        return [said for one in requests for said in answer_each(engine, [one], sampling, seed)]
