"""``vljax run``: mixed media, in any batches, by any processes, after a kill: the same file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vljax.cli.main import main
from vljax.data.world import render
from vljax.data.world.files import write_clip
from vljax.data.world.scenes import random_scene
from vljax.data.world.sound import waveform

ROOT = Path(__file__).parents[2]
SHORT = ("--max-new-tokens", "16", "--workers", "1")
TURNS = [
    {"from": "human", "value": "What is shown?"},
    {"from": "gpt", "value": "A bell."},
    {"from": "human", "value": "What colour is it?"},
]
GOOD = [
    {"id": 1, "media": "a.mp4", "question": "What happens, and what do you hear?"},
    {"id": "1", "media": "b.mp4", "question": "What happens, and what do you hear?"},
    {"id": "seen", "video": "a.mp4", "listen": False, "question": "What colour is it?"},
    {"id": "heard", "media": "b.mp4", "look": False, "question": "What do you hear?"},
    {"id": "still", "image": "a.png", "question": "What is shown?"},
    {"id": "both", "video": "a.mp4", "audio": "b.mp4", "question": "What do you hear?"},
    {"id": "talk", "media": "b.mp4", "listen": False, "conversation": TURNS},
    {"id": "words", "question": "Who made this?"},
    {
        "id": "drawn",
        "media": "a.mp4",
        "question": "What happens?",
        "sampling": {"temperature": 1.5, "seed": 3},
    },
]
BAD = {
    "gone": ({"media": "gone.mp4", "question": "Who?"}, "gone.mp4: got no such file"),
    "broken": ({"media": "broken.mp4", "question": "Who?"}, "broken.mp4 is not a readable video"),
    "asks nothing": ({"media": "a.mp4"}, "line 6: got no question, or two"),
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    """Requests, three of them bad, beside two clips and an image."""
    folder = tmp_path_factory.mktemp("asked")
    scenes = [random_scene(np.random.default_rng(i), "train", "one", 1) for i in (1, 2)]
    for name, scene in zip("ab", scenes, strict=True):
        write_clip(folder / f"{name}.mp4", render.frames(scene), waveform(scene))
    Image.fromarray(render.frames(scenes[0], 1)[0]).save(folder / "a.png")
    (folder / "broken.mp4").write_text("no clip")
    bad = [{"id": name, **fields} for name, (fields, _) in BAD.items()]
    rows = [*GOOD[:3], *bad, *GOOD[3:]]
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(asked: Path, out: Path, *flags: str) -> int:
    return main(["run", str(asked), "--out", str(out), *SHORT, *flags])


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory) -> Path:
    """Everything in one batch."""
    out = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    assert run(asked, out, "--batch", "16") == 1  # some failed
    return out


def test_answers_and_reasons_stand_in_the_order_of_the_requests(asked, whole):
    answers = {row["id"]: row for row in rows_of(whole)}
    assert list(answers) == [row["id"] for row in rows_of(asked)]
    for name, (_, reason) in BAD.items():
        assert reason in answers[name]["error"]
        assert "answer" not in answers[name]
    for row in GOOD:
        assert answers[row["id"]]["answer"]
    # The clips hold different things, and each row used what it named.
    assert answers[1]["answer"] != answers["1"]["answer"]
    assert answers["heard"]["answer"] == answers["both"]["answer"]  # one sound
    assert answers["both"]["answer"].strip("A.")[1:] in answers["1"]["answer"]
    assert answers["talk"]["question"] == "What colour is it?"
    assert answers["seen"]["answer"].strip(".").lower() in answers[1]["answer"]


def test_one_at_a_time_says_the_same(asked, whole, tmp_path):
    out = tmp_path / "answers.jsonl"
    run(asked, out, "--batch", "1")
    assert out.read_bytes() == whole.read_bytes()


def test_processes_share_the_rows(asked, whole, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    for i in range(2):
        run(asked, out, "--process", f"{i}/2", "--batch", "3")
    assert {p.name for p in tmp_path.iterdir()} == {
        "answers.0-of-2.jsonl",
        "answers.1-of-2.jsonl",
    }
    capsys.readouterr()
    assert run(asked, out) == 1
    assert out.read_bytes() == whole.read_bytes()
    told = capsys.readouterr().err
    assert "9 answered, 3 failed, 12 of 12 there before" in told
    assert "gone: " in told and "no such file" in told


def test_a_killed_run_goes_on(asked, whole, tmp_path):
    out = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "vljax.cli.main", "run", str(asked), "--out", str(out)]
    child = subprocess.Popen(
        [*command, *SHORT, "--batch", "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 300
    while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with out.open("ab") as file:  # as if it had been writing
        file.write(b'{"id": "words", "ans')
    before = out.read_bytes().count(b"\n")
    assert 2 <= before < len(GOOD) + len(BAD)
    run(asked, out, "--batch", "2")
    assert out.read_bytes() == whole.read_bytes()


def test_failed_rows_can_be_asked_again(asked, whole, tmp_path):
    out = tmp_path / "answers.jsonl"
    out.write_bytes(whole.read_bytes())
    gone = asked.parent / "gone.mp4"
    gone.write_bytes((asked.parent / "a.mp4").read_bytes())
    try:
        run(asked, out, "--retry")
    finally:
        gone.unlink()
    now = {row["id"]: row for row in rows_of(out)}
    assert "answer" in now["gone"] and "error" in now["broken"]
    assert now[1] == rows_of(whole)[0]


def test_answers_to_something_else_are_not_added_to(asked, whole, tmp_path, capsys):
    other = tmp_path / "requests.jsonl"
    other.write_text(json.dumps({"id": 1, "question": "Something else?"}) + "\n")
    kept = whole.read_bytes()
    assert run(other, whole) == 1
    assert "name another file with --out" in capsys.readouterr().err
    assert whole.read_bytes() == kept


def test_prompts_are_printed_and_nothing_answered(asked, capsys, monkeypatch):
    monkeypatch.setattr("vljax.generate.chat.load", None)
    assert main(["run", str(asked), "--print-prompt"]) == 1
    out, err = capsys.readouterr()
    blocks = out.split("# ")[1:]
    assert len(blocks) == len(GOOD) + len(BAD)
    assert "<ImageHere>. You see:<Video><ImageHere></Video>  What happens, and" in blocks[0]
    assert "16 of them media" in blocks[0]
    assert "###Human: What colour is it?###Assistant:" in next(b for b in blocks if "A bell" in b)
    assert "gone.mp4" in err
