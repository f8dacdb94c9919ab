"""Lines of a requests file: what they mean, and what is wrong with them."""

import json
import locale
import os
from pathlib import Path

import pytest

from vljax.generate.batch import Job
from vljax.generate.rows import (
    BadRow,
    Row,
    as_request,
    read_answers,
    read_requests,
    read_shards,
)
from vljax.generate.sampling import Sampling
from vljax.store import write_whole

ROOT = Path("media")


def read(tmp_path: Path, *lines: object):
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return read_requests(path, ROOT, Sampling(max_new_tokens=9))


def ask(**fields: object) -> dict[str, object]:
    return {"id": 1, "question": "Who?", **fields}


@pytest.mark.parametrize(
    ("fields", "look", "listen"),
    [
        ({"media": "a.mp4"}, "a.mp4", "a.mp4"),
        ({"video": "a.mp4"}, "a.mp4", "a.mp4"),
        ({"image": "a.png"}, "a.png", None),
        ({"audio": "a.wav"}, None, "a.wav"),
        ({"video": "a.mp4", "audio": "b.wav"}, "a.mp4", "b.wav"),
        ({"media": "a.mp4", "listen": False}, "a.mp4", None),
        ({"media": "a.mp4", "look": False}, None, "a.mp4"),
        ({"media": None}, None, None),
    ],
)
def test_files(tmp_path, fields, look, listen):
    (row,) = read(tmp_path, ask(**fields)).rows
    assert isinstance(row, Row)
    assert (row.look, row.listen) == (look and ROOT / look, listen and ROOT / listen)
    assert row.sampling == Sampling(max_new_tokens=9)


def test_a_conversation_ends_with_its_question(tmp_path):
    said = [("human", "Who?"), ("gpt", "A bell."), ("human", "Where?")]
    turns = [{"from": role, "value": words} for role, words in said]
    chat = [{"role": {"human": "user", "gpt": "assistant"}[r], "content": w} for r, w in said]
    rows = read(tmp_path, {"id": 1, "conversation": turns}, {"id": 2, "conversation": chat}).rows
    for row in rows:
        assert (row.question, row.history) == ("Where?", tuple(said[:2]))


def test_a_row_has_its_own_sampling(tmp_path):
    (row,) = read(tmp_path, ask(sampling={"temperature": 0.5, "top_k": 3, "seed": 7})).rows
    assert row.sampling == Sampling(0.5, 3, max_new_tokens=9)
    assert row.seed == 7


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": 1', "is no JSON"),
        ("[1]", "got a JSON list, expected an object"),
        ({"question": "Who?"}, "id: got None"),
        ({"id": True, "question": "Who?"}, "id: got True"),
        (ask(media="a.mp4", image="b.png"), "got media and image, expected one of"),
        (ask(media=3), "media: got 3, expected a path"),
        (ask(look="no"), "look: got 'no', expected true or false"),
        (ask(conversation=[]), "got no question, or two"),
        (ask(question=" "), "question: got ' ', expected words"),
        ({"id": 1, "conversation": [{"from": "gpt", "value": "x"}]}, "a human first"),
        ({"id": 1, "conversation": [{"from": "cat", "value": "x"}]}, '"human" or "gpt"'),
        (ask(sampling={"heat": 1}), "sampling: got 'heat', expected some of temperature"),
        (ask(sampling={"top_k": 0.5}), "top_k: got 0.5, expected a whole number"),
        (ask(sampling={"top_p": 2}), "top_p: got 2, expected"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, line, said):
    good = {"id": "good", "question": "Who?"}
    first, bad = read(tmp_path, good, line).rows
    assert isinstance(first, Row)
    assert isinstance(bad, BadRow)
    assert bad.error.startswith("line 2: ") and said in bad.error


def test_an_id_is_given_once(tmp_path):
    _, other, again = read(tmp_path, ask(), ask(id="1"), ask()).rows
    assert isinstance(other, Row)  # 1 and "1" are two
    assert "1 is line 1's already" in again.error


def test_unknown_fields_are_counted(tmp_path):
    read_ = read(tmp_path, ask(answer="?"), ask(id=2, answer="!", temperature=1))
    assert read_.unread == {"answer": 2, "temperature": 1}


def test_half_a_line_is_no_answer(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": 1, "answer": "x"}\n{"id": 2, "ans')
    assert list(read_answers(path)) == ["1"]
    path.write_text('{"id": 1, "answer": "x"}\nnotes\n{"id": 2}\n')
    with pytest.raises(ValueError, match="line 2 is no answer"):
        read_answers(path)


def test_requests_in_python():
    def read_media(look, listen):
        return look, listen

    def deaf(look, listen):
        return look, False

    request = as_request((Path("a.mp4"), "Who?"), deaf, read_media)
    assert (request.question, request.media) == ("Who?", (Path("a.mp4"), None))
    with pytest.raises(ValueError, match="sampling: is all requests' own"):
        as_request({"question": "Who?", "sampling": {}}, deaf, read_media)


def write_answers(path: Path, *answers: dict) -> None:
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))


def test_an_error_never_replaces_an_answer(tmp_path):
    out, row = tmp_path / "a.jsonl", Row(1, "Who?")
    said = {"id": 1, "question": "Who?", "answer": "x", "model": "m"}
    failed = {"id": 1, "error": "gone"}
    write_answers(tmp_path / "a.0-of-2.jsonl", said)
    write_answers(tmp_path / "a.1-of-2.jsonl", failed)
    assert read_shards(out) == {"1": said}
    write_answers(out, failed)
    assert Job.open([row], out, "m", (0, 1)).answers == {"1": said}


def test_hosts_write_one_file_at_once(tmp_path, monkeypatch):
    path, replace = tmp_path / "asked.json", os.replace

    def beside_another(*paths):
        monkeypatch.setattr(os, "replace", replace)
        write_whole(path, "theirs")
        replace(*paths)

    monkeypatch.setattr(os, "replace", beside_another)
    write_whole(path, "ours")
    assert [p.name for p in tmp_path.iterdir()] == ["asked.json"]
    assert path.read_text() == "ours"


def test_files_are_utf_8_in_any_locale(tmp_path):
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        write_whole(tmp_path / "a", "caf\xe9")
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert (tmp_path / "a").read_bytes() == b"caf\xc3\xa9"
