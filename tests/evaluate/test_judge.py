"""A judge behind an endpoint, which is a server of these tests' own."""

import datetime
import http.client
import http.server
import json
import threading
from pathlib import Path

import pytest

from vljax.cli.main import main
from vljax.evaluate.judge import Judge, parse, told, verdict

ROWS = [
    {"id": 1, "question": "what", "answer": "dog", "pred": "A dog.", "video": "a"},
    {"id": "two", "question": "who", "answer": ["cat", "kitten"], "pred": "cow", "video": "b"},
    {"id": 3, "error": "c.mp4: got no such file"},
    {"id": 4, "question": "where", "answer": "here", "pred": "well", "video": "b"},
]
SAYS = {
    "A dog.": '{"correct": "yes", "score": 5}',
    "cow": '```json\n{"correct": "no", "score": 1}\n```',
    "well": "Yes, I would say 4.",
}


class Stub(http.server.BaseHTTPRequestHandler):
    """Replies by what is to be judged; fails where ``failing`` says so, once each."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), asked))
        code = self.server.failing.pop(0) if self.server.failing else 200
        pred = asked["messages"][1]["content"].rsplit("Answer to judge: ", 1)[1]
        message = {"role": "assistant", "content": SAYS[pred]}
        reply = {"model": "judge-2030-01-01", "choices": [{"message": message}]}
        body = json.dumps(reply if code == 200 else {"error": "no key"}).encode()
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("vljax.evaluate.judge.PATIENCE", (0.0,))
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    made.asked, made.failing = [], []
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return tmp_path


def call(folder: Path, server, *flags: str, name: str = "judge") -> int:
    where = f"http://127.0.0.1:{server.server_address[1]}"
    words = ["--endpoint", where, "--judge-model", name, *flags]
    return main(["evaluate", "judge", str(folder), *words])


def replies(folder: Path) -> list[dict]:
    return [json.loads(x) for x in (folder / "judge.jsonl").read_text().splitlines()]


def test_figures_with_the_judges_name_and_the_date(folder, server, monkeypatch, capsys):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    assert call(folder, server, "--api-key-env", "JUDGE_KEY") == 1  # one can't be read
    out = capsys.readouterr().out
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert out.startswith(f"judge judge ({today}): 50.0 % right (0.0 to 100.0), score 3.00 of 5")
    assert "n = 2; 1 replies are not as asked for and in no figure: 4" in out
    assert [r["id"] for r in replies(folder)] == [1, "two", 4]
    for reply, row in zip(replies(folder), [ROWS[0], ROWS[1], ROWS[3]], strict=True):
        assert (reply["judge"], reply["date"], reply["pred"]) == ("judge", today, row["pred"])
        assert reply["reply"]["choices"][0]["message"]["content"] == SAYS[row["pred"]]
    made = json.loads((folder / "judge.json").read_text())
    assert (made["judge"], made["dates"]) == ("judge", [today])
    assert made["answered_as"] == ["judge-2030-01-01"]
    assert made["unreadable"] == [4]
    path, key, body = server.asked[1]
    assert (path, key) == ("/v1/chat/completions", "Bearer s3cret")
    assert (body["model"], body["temperature"]) == ("judge", 0)
    assert body["messages"][1]["content"] == (
        "Question: who\nKnown answer: cat / kitten\nAnswer to judge: cow"
    )
    assert "s3cret" not in "".join(p.read_text() for p in folder.iterdir())


def test_what_was_judged_is_not_asked_again(folder, server):
    call(folder, server)
    whole = (folder / "judge.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (folder / "judge.jsonl").write_bytes(lines[0] + lines[1][:9])  # as if it had been killed
    server.asked.clear()
    call(folder, server)
    assert (folder / "judge.jsonl").read_bytes() == whole
    assert len(server.asked) == 2
    server.asked.clear()
    call(folder, server, "--retry")  # what could not be read
    assert len(server.asked) == 1


def test_an_endpoint_that_fails(folder, server, capsys):
    server.failing = [500]  # once: it is tried again
    call(folder, server)
    assert len(replies(folder)) == 3
    (folder / "judge.jsonl").unlink()
    capsys.readouterr()
    server.failing, before = [200, 401], len(server.asked)
    assert call(folder, server) == 1
    out, err = capsys.readouterr()
    assert out == ""  # no figure of a part
    assert 'HTTP 401: {"error": "no key"}; what was judged is kept' in err
    assert len(server.asked) == before + 2
    assert [r["id"] for r in replies(folder)] == [1]


def test_another_judge_or_other_answers(folder, server, capsys):
    call(folder, server)
    assert call(folder, server, name="other") == 1
    assert "holds replies of judge 'judge', asked is 'other'" in capsys.readouterr().err
    rows = [ROWS[0] | {"pred": "A dog!"}, *ROWS[1:]]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert call(folder, server) == 1
    assert "a reply to another answer of 1" in capsys.readouterr().err


def test_a_key_that_is_not_set(folder, server, capsys):
    assert call(folder, server, "--api-key-env", "NO_SUCH_KEY") == 1
    assert "the variable NO_SUCH_KEY is not set" in capsys.readouterr().err
    assert call(folder / "none", server) == 1
    assert "holds no prediction" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ('{"correct": "yes", "score": 4}', (True, 4)),
        ('{"correct": "no", "score": 0, "why": "x"}', (False, 0)),
        ('```\n{"correct": "no", "score": 2}\n```', (False, 2)),
        ('{"correct": "Yes", "score": 4}', None),
        ('{"correct": true, "score": 4}', None),
        ('{"correct": "yes", "score": 6}', None),
        ('{"correct": "yes", "score": "4"}', None),
        ('{"correct": "yes", "score": true}', None),
        ('Sure: {"correct": "yes", "score": 4}', None),
        ("[]", None),
        ("", None),
        (None, None),
    ],
)
def test_replies_are_read_and_never_guessed(content, read):
    assert parse({"choices": [{"message": {"content": content}}]}) == read


def test_a_reply_of_another_kind():
    assert parse({"error": "overloaded"}) is None
    assert parse({"choices": []}) is None


@pytest.mark.parametrize(
    "endpoint", ["http://h", "http://h/", "http://h/v1", "http://h/v1/chat/completions"]
)
def test_where_it_is_asked(endpoint):
    assert Judge(endpoint, "j").url == "http://h/v1/chat/completions"


def test_no_reply_could_be_read():
    row = {"id": 1, "judge": "j", "endpoint": "e", "date": "2030-01-02", "reply": {}}
    later = row | {"id": 2, "date": "2030-01-04"}
    made = verdict([row, later], {})
    assert told(made) == (
        "judge j (2030-01-02 to 2030-01-04): no reply could be read; 2 replies are not as asked "
        "for and in no figure: 1, 2"
    )
    assert "correct" not in made


@pytest.mark.parametrize("name", ["mine.json", "report.jsonl", "predictions.jsonl"])
def test_replies_and_figures_replace_no_other_file(folder, server, capsys, name):
    assert call(folder, server, "--out", str(folder / name)) == 1
    assert f"{name}, expected a name for the replies" in capsys.readouterr().err
    assert not server.asked


def test_a_reply_that_is_cut_off_is_asked_for_again(monkeypatch):
    replies = [http.client.IncompleteRead(b"{"), {"choices": []}]

    def post(self, body):
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr("vljax.evaluate.judge.PATIENCE", (0.0,))
    monkeypatch.setattr(Judge, "_post", post)
    assert Judge("http://h", "j").ask(ROWS[0]) == {"choices": []}


def test_an_endpoint_that_is_none_is_told_at_once(monkeypatch):
    monkeypatch.setattr("vljax.evaluate.judge.time.sleep", None)
    with pytest.raises(OSError, match="InvalidURL: nonnumeric port: '80a'"):
        Judge("http://localhost:80a", "j").ask(ROWS[0])
