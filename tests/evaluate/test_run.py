"""Figures of hand-made answers; then the tiny model's, killed, shared, and of parts of a clip."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vljax.cli.main import main
from vljax.data.audio import mel_clips, read_audio
from vljax.data.video import MediaError, read_clip
from vljax.data.world import render
from vljax.data.world.files import write_clip
from vljax.data.world.scenes import Scene, Thing
from vljax.data.world.sound import waveform
from vljax.evaluate.run import report, require_same_answers, summary
from vljax.evaluate.sets import Asking, Questions
from vljax.generate.chat import TINY_WEIGHTS
from vljax.generate.media import read_media
from vljax.generate.rows import BadRow
from vljax.models.sizes import TINY
from vljax.store import manifest_hash

ROOT = Path(__file__).parents[2]
SHORT = ("--max-new-tokens", "12", "--workers", "1", "--batch", "4")


def item(id, answers, candidates=(), kind="", video="a"):
    return Asking().item(id, "?", video, Path("a.mp4"), answers, candidates, kind)


def answer(pred, nats=-1.0, **more):
    return {"pred": pred, "nats": nats, **more}


def test_figures_of_answers_made_by_hand():
    rows = [
        item(1, ["dog"], kind="what", video="a"),
        item(2, ["two"], kind="how", video="b"),
        item(3, ["a cat", "cats"], kind="what", video="c"),
        item(4, ["cow"], kind="what", video="d"),
        BadRow(5, "5 has no answer in a.json"),
    ]
    lost = answer("", by_sum="dog", by_mean="dog")
    answers = {
        "1": answer("A dog.", -0.5, by_sum="dog", by_mean="cat", text=lost, blank=lost),
        "2": answer("It is two of them", -1.5, by_sum="two", by_mean="two", text=lost, blank=lost),
        "3": answer("Cats", -1.0, by_sum="dog", by_mean="cats", text=lost, blank=lost),
        "4": {"id": 4, "error": "d.mp4: got no such file"},
        "5": {"id": 5, "error": "5 has no answer in a.json"},
    }
    about = {"set": "qa", "model": "m", "candidates": ["dog", "cat", "cats"]}
    made = report(Questions(rows, ["9"]), answers, about)

    def value(measure, given="clip", figures=made["figures"]):
        return figures[measure][given]["value"]

    assert (value("exact"), value("contains")) == (0.6667, 1.0)
    assert value("f1") == round((1 + 2 / 6 + 1) / 3, 4)  # one word of five, one of one
    assert (value("by_sum"), value("by_mean"), value("nats")) == (0.6667, 0.6667, -1.0)
    assert (value("by_sum", "blank"), value("exact", "text")) == (0.3333, 0.0)
    assert value("exact", figures=made["types"]["what"]) == 1.0
    assert value("exact", figures=made["types"]["how"]) == 0.0
    assert made["figures"]["exact"]["clip"]["n"] == 3
    assert made["figures"]["exact"]["clip"]["low"] == 0.0  # of three clips, two right
    assert (made["questions"], made["answered"]) == (5, 3)
    assert [row["id"] for row in made["failed"]] == [4, 5]
    told = summary(made)
    assert "| exact match | 66.7 % | 0.0 % to 100.0 % | 0.0 % | 0.0 % | 3 |" in told
    assert "- 4: d.mp4: got no such file\n- 5: 5 has no answer" in told
    assert "Answers without a question: 9" in told
    assert "A right answer is among the 3 candidates: 66.7 %." in told


def test_figures_of_choices_made_by_hand():
    rows = [item(1, ["dog"], ["dog", "cat"]), item(2, ["cat"], ["dog", "cat", "red cow", "hen"])]
    answers = {
        "1": answer("(A) dog", by_sum="cat", by_mean="dog"),
        "2": answer("a red cow", by_sum="cat", by_mean="dog"),
    }
    made = report(Questions(rows), answers, {"set": "choices", "model": "m"})
    values = {name: row["clip"]["value"] for name, row in made["figures"].items()}
    assert values == {"matched": 0.5, "by_sum": 0.5, "by_mean": 0.5, "nats": -1.0}
    assert made["chance"] == 0.375
    assert "Chance: 37.5 %" in summary(made)


FIRST = Scene("one", (Thing("kettle", "blue", "right"),), ("siren",), 2.0, 0.5, 3)
SECOND = Scene("one", (Thing("bell", "red", "still"),), ("bird",), 2.0, 0.5, 4)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """a and v_b; "both" shows a, then b; one that is no clip."""
    folder = tmp_path_factory.mktemp("clips")
    shown = [render.frames(s) for s in (FIRST, SECOND)]
    heard = [waveform(s) for s in (FIRST, SECOND)]
    for name, frames, wave in zip(("a", "v_b"), shown, heard, strict=True):
        write_clip(folder / f"{name}.mp4", frames, wave)
    write_clip(folder / "both.mp4", np.concatenate(shown), np.concatenate(heard))
    (folder / "broken.mp4").write_text("no clip")
    return folder


def test_a_span_is_what_is_shown_and_heard_within_it(clips):
    path, rate = clips / "both.mp4", render.RATE
    whole, part = read_media(path, TINY), read_media(path, TINY, span=(2.0, 4.0))
    side = (TINY.vit.image, TINY.vit.image)
    picked = 2 * rate + np.arange(8) * 2 * rate // 8
    np.testing.assert_array_equal(part.frames, read_clip(path, lambda n: picked, side).frames)
    assert part.message == read_media(clips / "v_b.mp4", TINY).message  # as if it were cut so
    samples, hertz = read_audio(path)
    heard = mel_clips(samples[:, 2 * hertz : 4 * hertz], hertz, TINY.audio)
    np.testing.assert_array_equal(part.mel, heard)
    assert not np.array_equal(part.mel, whole.mel)
    np.testing.assert_array_equal(read_media(path, TINY, span=(0, 1e9)).frames, whole.frames)
    with pytest.raises(MediaError, match="has no frame from 9 to 10 s"):
        read_media(path, TINY, span=(9.0, 10.0))


def ask(name: str, kind: str, folder: Path, out: Path, *flags: object) -> list[str]:
    """A command line."""
    files = {
        "qa": ("--questions", folder / "test_q.json", "--answers", folder / "test_a.json"),
        "choices": ("--annotations", folder / f"{name}.json"),
        "captions": ("--annotations", folder / f"{name}.csv"),
    }[kind]
    words = ("evaluate", kind, *files, "--media", folder, "--out", out, *SHORT, *flags)
    return list(map(str, words))


RIGHT = {"a": ("A kettle.", "Blue."), "b": ("A bell.", "Red.")}


@pytest.fixture(scope="module")
def asked(clips) -> Path:
    questions, answers = [], []
    for video in ("a", "b"):
        for kind, words, right in zip(
            ("object", "colour"),
            ("What is shown?", "What colour is it?"),
            RIGHT[video],
            strict=True,
        ):
            id = f"{video}_{kind}"
            questions.append({"question": words, "video_name": video, "question_id": id})
            answers.append({"answer": right.strip("."), "question_id": id, "type": kind})
    bad = [("gone", "gone"), ("broken", "broken"), ("lost", "a")]
    for id, video in bad:
        questions.insert(2, {"question": "Who?", "video_name": video, "question_id": id})
    answers += [{"answer": "x", "question_id": id} for id in ("gone", "broken", "unasked")]
    answers[0]["answer"] = "a bird"  # which is wrong
    (clips / "test_q.json").write_text(json.dumps(questions))
    (clips / "test_a.json").write_text(json.dumps(answers))
    return clips


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(ask("qa", "qa", asked, out)) == 1  # some are named
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if "-of-" not in p.name}


def test_questions_are_answered_and_what_is_missing_is_named(whole, asked):
    rows = [json.loads(x) for x in (whole / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [
        r["question_id"] for r in json.loads((asked / "test_q.json").read_text())
    ]
    good = {row["id"]: row for row in rows if "error" not in row}
    assert {id: row["pred"] for id, row in good.items()} == {
        "a_object": "A kettle.",
        "a_colour": "Blue.",
        "b_object": "A bell.",
        "b_colour": "Red.",
    }
    assert good["a_object"]["answer"] == "a bird"
    made = json.loads((whole / "report.json").read_text())
    assert made["figures"]["exact"]["clip"]["value"] == 0.75
    assert made["types"]["object"]["exact"]["clip"]["value"] == 0.5
    assert made["types"]["colour"]["exact"]["clip"]["value"] == 1.0
    # What it says of grey frames, and of nothing, is another thing.
    assert made["figures"]["exact"]["text"]["value"] == 0.0
    assert good["a_colour"]["blank"]["pred"] != "Blue."
    assert good["a_colour"]["nats"] > good["a_colour"]["blank"]["nats"] + 0.5
    reasons = {row["id"]: row["error"] for row in made["failed"]}
    assert set(reasons) == {"gone", "broken", "lost"}
    assert "no such file" in reasons["gone"] and "not a readable video" in reasons["broken"]
    assert reasons["lost"] == "'lost' has no answer in test_a.json"
    assert made["unasked"] == ["unasked"]
    assert "| object: exact match | 50.0 % |" in (whole / "report.md").read_text()


def test_processes_share_the_questions(asked, whole, tmp_path):
    out = tmp_path / "out"
    for i in range(2):
        main(ask("qa", "qa", asked, out, "--process", f"{i}/2"))
    shards = sorted(p.name for p in out.glob("predictions*"))
    assert shards == ["predictions.0-of-2.jsonl", "predictions.1-of-2.jsonl"]
    assert not (out / "report.json").exists()
    assert main(ask("qa", "qa", asked, out)) == 1
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(asked, tmp_path):
    seen = ("--no-audio", "--no-baselines", "--batch", "3")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(ask("qa", "qa", asked, whole, *seen)) == 1
    # As many devices as the tests' own process: last digits may depend on it.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"}
    child = subprocess.Popen(
        [sys.executable, "-m", "vljax.cli.main", *ask("qa", "qa", asked, out, *seen)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    path, until = out / "predictions.jsonl", time.monotonic() + 300
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    # The next batch is of another size, and was being compiled.
    assert path.read_bytes().count(b"\n") < len(contents(whole)["predictions.jsonl"].splitlines())
    with path.open("ab") as file:  # as if it had been writing
        file.write(b'{"id": "b_obj')
    assert main(ask("qa", "qa", asked, out, *seen)) == 1
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-new-tokens", "9"], "was begun with max_new_tokens 12, asked for is 9"),
        (["--candidates", "2"], "was begun with candidates None"),
        (["--no-video"], "was begun with look True"),
    ],
)
def test_a_folder_is_of_one_way_of_asking(asked, whole, capsys, flags, said):
    before = contents(whole)
    assert main(ask("qa", "qa", asked, whole, *flags)) == 1
    assert said in capsys.readouterr().err
    assert contents(whole) == before


def test_a_right_answer_that_has_changed(asked, whole, tmp_path, capsys):
    other = json.loads((asked / "test_a.json").read_text())
    other[0]["answer"] = "a fish"
    (tmp_path / "a.json").write_text(json.dumps(other))
    words = ask("qa", "qa", asked, whole)
    words[words.index("--answers") + 1] = str(tmp_path / "a.json")
    assert main(words) == 1
    assert "was right with 'a bird', is now with 'a fish'" in capsys.readouterr().err


def test_weights_that_were_trained_on_in_the_same_folder(asked, whole, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(TINY_WEIGHTS, model)
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    about = json.loads((out / "asked.json").read_text())
    about |= {"model": str(model), "weights": manifest_hash(model)}
    (out / "asked.json").write_text(json.dumps(about))
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps(manifest | {"step": 9}))
    assert main(ask("qa", "qa", asked, out, "--model", model)) == 1
    before, now = about["weights"], manifest_hash(model)
    told = f"was begun with weights '{before}', asked for is '{now}'; name another folder"
    assert told in capsys.readouterr().err


def test_a_folder_is_of_one_folder_of_clips(asked, whole, tmp_path, capsys):
    assert main([*ask("qa", "qa", asked, whole), "--media", str(tmp_path)]) == 1
    assert f"was begun with media '{asked}', asked for is '{tmp_path}'" in capsys.readouterr().err


@pytest.mark.parametrize("now", [["cat", "dog"], ["dog", "cow"]])
def test_candidates_that_have_changed(now):
    kept = {"1": {"answer": "dog", "candidates": {"dog": [-1.0, 1], "cat": [-2.0, 1]}}}
    require_same_answers(Path("p"), {"1": item(1, ["dog"], ["dog", "cat"])}, kept)
    with pytest.raises(ValueError, match=r"1 had the candidates \['dog', 'cat'\], now has"):
        require_same_answers(Path("p"), {"1": item(1, ["dog"], now)}, kept)


def test_choices_in_parts_of_a_clip(clips, tmp_path, capsys):
    shown = {"question": "What is shown?", "candidates": ["A bell.", "A kettle."]}
    heard = {"question": "What do you hear?", "candidates": ["A siren.", "A bird."]}
    rows = [
        {"video": "both.mp4", "start": 0, "end": 2, "answer": "A kettle.", **shown},
        {"video": "both", "start": 2, "answer": "A bird.", **heard},
    ]
    (clips / "parts.json").write_text(json.dumps(rows))
    assert main(ask("parts", "choices", clips, tmp_path / "out", "--plain", "--json")) == 0
    made = json.loads(capsys.readouterr().out)
    for measure in ("matched", "by_sum", "by_mean"):
        assert made["figures"][measure]["clip"]["value"] == 1.0
    assert made["figures"]["matched"]["text"]["value"] == 0.0
    assert made["chance"] == 0.5
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    first, second = (json.loads(x)["candidates"] for x in lines)
    assert first["A kettle."][0] > first["A bell."][0] + 3
    assert second["A bird."][0] > second["A siren."][0] + 3


def test_captions_against_several(clips, tmp_path):
    table = 'file_name,text\na.mp4,A fish.\na.mp4,"A blue kettle moves right."\nv_b.mp4,A red car\n'
    (clips / "c.csv").write_text(table)
    out = tmp_path / "out"
    assert main(ask("c", "captions", clips, out, "--no-audio", "--no-baselines")) == 0
    rows = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["pred"] for row in rows] == [
        "A blue kettle moves right.",
        "A red bell stays still.",
    ]
    figures = json.loads((out / "report.json").read_text())["figures"]
    assert {name: set(row) for name, row in figures.items()} == {
        name: {"clip"} for name in ("exact", "contains", "f1", "nats")
    }
    assert figures["exact"]["clip"]["value"] == 0.5
    # red of four words and of two: 2 / 6.
    assert figures["f1"]["clip"]["value"] == round((1 + 2 / 6) / 2, 4)
