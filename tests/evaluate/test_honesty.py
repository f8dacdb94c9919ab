"""Whether answers come from the sound: figures by hand, balanced questions, and tiny itself."""

import collections
import json
from pathlib import Path

import numpy as np
import pytest

import vljax
from vljax.cli import evaluate_sound
from vljax.data.world.files import write_clip
from vljax.data.world.render import frames
from vljax.data.world.scenes import OBJECTS, Scene, Thing
from vljax.data.world.sound import RATE, play, waveform
from vljax.evaluate import honesty, honesty_report
from vljax.evaluate.honesty import Ask, Asker, Case, Exam, Probe, Wording
from vljax.evaluate.naming import (
    Verdict,
    claims,
    overlap,
    pope,
    pope_yes_or_no,
    ranked,
    words,
    yes_or_no,
)
from vljax.evaluate.sound_clips import (
    Labelled,
    noise_like,
    own_clips,
    read_sound,
    vocabulary,
    world_scenes,
)
from vljax.generate import long
from vljax.generate.chat import TINY_WEIGHTS
from vljax.generate.engine import Engine, Request
from vljax.generate.likelihood import log_likelihoods
from vljax.generate.media import Encoded
from vljax.store import manifest_hash

NOTHING = np.zeros((1, 2), np.float32)


def shares(row: dict) -> tuple[float, int]:
    return row["accuracy"], row["n"]


# What an answer claims


def test_words_are_compared_without_case_articles_and_plurals():
    assert words("The Dogs' barks, some BUSHES and a Bus.") == [
        "dog", "bark", "bush", "and", "bus",
    ]  # fmt: skip
    assert words("sirens glasses flies bells' gas") == ["siren", "glass", "fly", "bell", "gas"]


@pytest.mark.parametrize(
    ("answer", "label", "claimed"),
    [
        ("A bell.", "bell", True),
        ("I hear two Bells ringing", "a bell", True),
        ("A doorbell.", "bell", False),
        ("A barking dog.", "dog barking", True),
        ("A dog.", "dog barking", False),
        ("Some barking.", "dog|barking", True),
        ("There is no bell.", "bell", False),
        ("I don't hear a bell, I hear a drum.", "bell", False),
        ("I don't hear a bell, I hear a drum.", "drum", True),
        ("No, a drum.", "drum", True),
        ("A drum, not a bell.", "drum", True),
        ("A drum, not a bell.", "bell", False),
        ("No bell or drum.", "drum", False),
        ("There is no bell, but a drum.", "drum", True),
        ("A bell moves left, and I hear a car.", "car", True),
        ("It is not clear and I hear a car.", "car", True),
        ("I can't tell whether it is a bell.", "bell", False),
        ("", "bell", False),
    ],
)
def test_what_is_denied_is_not_claimed(answer, label, claimed):
    assert claims(answer, label) is claimed


@pytest.mark.parametrize(
    ("answer", "strict", "as_pope"),
    [
        ("Yes.", True, True),
        ("yes, a drum", True, True),
        ("No, I do not.", False, False),
        ("I do not hear it. Yes.", None, False),
        ("A drum.", None, True),
        ("Nothing.", None, True),
        ("Yesterday there was one.", None, True),
        ("", None, True),
    ],
)
def test_yes_and_no_are_read_off_the_words(answer, strict, as_pope):
    assert yes_or_no(answer) is strict
    assert pope_yes_or_no(answer) is as_pope


def test_labels_that_can_stand_for_each_other():
    assert overlap("Dogs", "a dog") and overlap("bird", "bird of prey") and overlap("a|b", "c|b")
    assert not overlap("dog barking", "dog howling")


def test_popes_figures_by_hand():
    said = [
        # clip, there, kind, said
        Verdict("a", True, "", True),
        Verdict("a", False, "adversarial", True),
        Verdict("b", True, "", True),
        Verdict("b", False, "random", False),
        Verdict("c", True, "", False),
        Verdict("c", False, "adversarial", None),
        Verdict("d", True, "", True),
        Verdict("d", False, "popular", False),
    ]
    got = pope(said)
    assert shares(got["accuracy"]) == (0.625, 8)  # a, b, b, d, d
    assert shares(got["yes_rate"]) == (0.5, 8)
    assert shares(got["neither"]) == (0.125, 8)
    assert shares(got["precision"]) == (0.75, 4)
    assert shares(got["recall"]) == (0.75, 4)
    assert (got["f1"]["value"], got["f1"]["n"]) == (0.75, 4)
    assert got["f1"]["low"] < 0.75 < got["f1"]["high"]
    assert {k: shares(v) for k, v in got["hallucinated"].items()} == {
        "all": (0.25, 4),
        "adversarial": (0.5, 2),
        "random": (0.0, 1),
        "popular": (0.0, 1),
    }
    assert got["accuracy"]["chance"] == 0.5
    always = pope([v._replace(said=True) for v in said])
    assert always["accuracy"]["accuracy"] == 0.5 and always["f1"]["value"] == 0.6667
    assert pope([v._replace(said=None) for v in said])["f1"]["value"] == 0


def test_ranking_is_blind_to_a_leaning():
    assert shares(ranked([(-9, -10), (5, 4), (1, 2), (3, 3)])) == (0.5, 4)


# What is asked


def case(name: str, heard: str, shown: str = "", sight: bool = True) -> Case:
    parts = (tuple(filter(None, x.split(";"))) for x in (heard, shown))
    seen = np.zeros((1, 2), np.float32) if sight else None
    return Case(name, *parts, NOTHING, NOTHING, seen)


@pytest.mark.parametrize(("n", "seed"), [(24, 0), (24, 1), (31, 2), (100, 3)])
def test_the_probes_are_balanced_exactly(n, seed):
    cases = [
        case(str(i), ";".join(s.sounds), s.things[0].object)
        for i, s in enumerate(world_scenes(seed, n))
    ]
    probes = honesty.draw_probes(cases, OBJECTS, np.random.default_rng(seed))
    assert [p.case for p in probes] == [i for i in range(n) for _ in range(2)]
    kinds = collections.Counter(p.kind for p in probes)
    half = n // 2
    assert kinds[""] == n and kinds["adversarial"] == half
    assert kinds["random"] == -(-(n - half) // 2) and kinds["popular"] == (n - half) // 2
    for there, absent in zip(probes[::2], probes[1::2], strict=True):
        own = cases[there.case]
        assert there.label in own.heard and absent.label not in own.heard
        assert (absent.label in own.shown) == (absent.kind == "adversarial")
    sounds = collections.Counter(c.heard for c in cases)
    assert max(sounds.values()) - min(sounds.values()) <= 1


def test_probes_where_pictures_help_little():
    cases = [
        case("a", "dog"),
        case("b", "dog", "dog"),
        case("c", "cat;dog", "cow"),
        case("d", "cat"),
    ]
    probes = honesty.draw_probes(cases, ["dog", "cat"], np.random.default_rng(0))
    absent = {p.case: (p.label, p.kind) for p in probes if p.kind}
    assert absent[2] == ("cow", "adversarial")  # all sounds are heard in it
    assert [absent[i][0] for i in (0, 1, 3)] == ["cat", "cat", "dog"]
    assert sum(not p.kind for p in probes) == len(absent) == 4
    assert honesty.draw_probes([case("e", "x;y")], ["x", "y"], np.random.default_rng(0)) == []


def test_partners_sound_unlike_what_is_heard_and_seen():
    cases = [case("a", "dog", "cat"), case("b", "cat"), case("c", "bird"), case("d", "dogs")]
    partners = honesty.draw_partners(cases, np.random.default_rng(0))
    assert partners[0] == 2
    assert partners[1] in (0, 2, 3) and partners[3] in (1, 2)
    assert honesty.draw_partners([case("a", "dog"), case("b", "a dog")], None) == [None, None]


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("drum", "a drum"),
        ("engine|motor", "an engine"),
        ("the rain", "the rain"),
        ("footsteps", "footsteps"),
        ("dog barking", "dog barking"),
        ("car horn", "a car horn"),
    ],
)
def test_a_label_becomes_a_question(label, named):
    assert Wording().yes_no_about(label) == f"Do you hear {named}?"


# What comes out, from answers made by hand


class Parrot:
    """An asker that says what it is told to."""

    def __init__(self, exam: Exam, said: dict, preferred: dict):
        self.exam, self.said, self.preferred = exam, said, preferred

    def answer(self, ask: Ask) -> str:
        name = self.exam.cases[ask.case].name
        return self.said.get((name, ask.condition, ask.question)) or self.said[name, ask.condition]

    def preference(self, ask: Ask) -> float:
        return self.preferred[self.exam.cases[ask.case].name, ask.question]


@pytest.fixture
def exam() -> Exam:
    cases = [case("a", "bell", "drum"), case("b", "drum", "car"), case("c", "car", sight=False)]
    probes = [
        Probe(0, "bell"), Probe(0, "drum", "adversarial"),
        Probe(1, "drum"), Probe(1, "bell", "random"),
        Probe(2, "car"), Probe(2, "bell", "popular"),
    ]  # fmt: skip
    return Exam(cases, ["bell", "drum", "car"], [2, 0, None], probes, NOTHING, 2.0)


def test_conditions_by_hand(exam):
    said = {
        ("a", "real"): "A bell.", ("b", "real"): "A car.", ("c", "real"): "A car and a bell.",
        ("a", "swapped"): "A car.", ("b", "swapped"): "The drums!",
        ("a", "muted"): "Nothing.", ("b", "muted"): "a car", ("c", "muted"): "Nothing.",
        ("a", "noise"): "A drum.", ("b", "noise"): "A car.", ("c", "noise"): "Rain.",
        ("a", "none"): "A bell", ("b", "none"): "No car.", ("c", "none"): "No.",
    }  # fmt: skip
    asker = Parrot(exam, said, {})
    rows = honesty_report.conditions(asker, Wording(), "alone")
    real = {k: shares(v) for k, v in rows["real"].items() if k != "answers"}
    assert real == {"own": (0.6667, 3), "seen": (0.5, 2), "any": (1.0, 3)}
    swapped = {k: shares(v) for k, v in rows["swapped"].items() if k != "answers"}
    assert swapped == {
        "own": (0.5, 2), "seen": (0.0, 2), "any": (1.0, 2), "given": (0.5, 2), "same": (0.0, 2),
    }  # fmt: skip
    muted = {k: shares(v) for k, v in rows["muted"].items() if k != "answers"}
    assert muted == {"own": (0.0, 3), "seen": (0.5, 2), "any": (0.3333, 3), "same": (0.3333, 3)}
    assert rows["muted"]["answers"] == {"Nothing.": 2, "a car": 1}
    assert shares(rows["noise"]["seen"]) == (1.0, 2)
    assert shares(rows["none"]["any"]) == (0.3333, 3)
    beside = honesty_report.conditions(asker, Wording(), "beside")
    assert beside["real"]["own"]["n"] == 2
    found = honesty_report._scale(asker, Wording(), 2.0)
    assert found["own"] and shares(found["alone"]) == (0.3333, 3)  # c's names too many
    assert shares(found["alone"]["among"]) == (0.6667, 3)
    assert shares(found["alone"]["seen"]) == (0.5, 2)
    assert honesty_report.chance(exam) == 0.3333


def test_probes_by_hand(exam):
    yes_no = {
        ("a", "real", "Do you hear a bell?"): "Yes.",
        ("a", "real", "Do you hear a drum?"): "Yes, I do.",
        ("b", "real", "Do you hear a drum?"): "No.",
        ("b", "real", "Do you hear a bell?"): "A bell and drums.",
        ("c", "real", "Do you hear a car?"): "Yes.",
        ("c", "real", "Do you hear a bell?"): "No",
    }
    said = {("a", "real"): "A drum.", ("b", "real"): "A drum.", ("c", "real"): "Nothing."} | yes_no
    nats = dict(zip([(k[0], k[2]) for k in yes_no], (1.0, 2.0, -1.0, -2.0, 0.5, -0.5), strict=True))
    rows = honesty_report.probes(Parrot(exam, said, nats), Wording(), "alone")
    assert shares(rows["naming"]["accuracy"]) == (0.5, 6)  # b's two, and c's absent one
    assert shares(rows["naming"]["hallucinated"]["adversarial"]) == (1.0, 1)
    assert shares(rows["words"]["accuracy"]) == (0.5, 6)
    assert shares(rows["words"]["neither"]) == (0.1667, 6)
    assert rows["words"]["f1"]["value"] == 0.6667
    assert shares(rows["names_heard"]) == (0.1667, 6) and shares(rows["echoes"]) == (0.3333, 3)
    assert shares(rows["pope"]["yes_rate"]) == (0.6667, 6)
    assert shares(rows["likelihood"]["accuracy"]) == (0.6667, 6)
    assert shares(rows["likelihood"]["ranked"]) == (0.6667, 3)
    beside = honesty_report.probes(Parrot(exam, said, nats), Wording(), "beside")
    assert beside["words"]["accuracy"]["n"] == 4


# Clips


@pytest.mark.parametrize(("name", "rate"), [("drum", RATE), ("car", 44100)])
def test_noise_has_the_level_of_the_sound(name, rate):
    rng = np.random.default_rng(0)
    wave = np.stack([play(rng, name, rate), np.zeros(rate, np.float32)]) + np.float32(0.01)
    noise = noise_like(wave, rng)
    assert noise.shape == (1, rate) and noise.dtype == np.float32
    assert noise.std() == pytest.approx(wave[0].std(), rel=1e-4)
    assert abs(noise.mean()) < 1e-6
    power = np.abs(np.fft.rfft(noise[0])) ** 2
    quarters = [part.mean() for part in np.array_split(power, 4)]
    assert max(quarters) < 1.1 * min(quarters)  # white
    assert np.abs(noise_like(np.zeros((1, 100), np.float32), rng)).max() == 0


def test_a_table_of_clips(tmp_path):
    table = tmp_path / "metadata.csv"
    table.write_text("\ufefffile_name, sound,shown\na.wav,Dog; a rain,\nb/c.mp4,dogs,A cat;dog\n")
    expected = [
        Labelled(tmp_path / "a.wav", ("Dog", "a rain")),
        Labelled(tmp_path / "b/c.mp4", ("Dog",), ("A cat", "Dog")),
    ]
    assert own_clips(table) == own_clips(tmp_path) == expected
    assert vocabulary(expected) == ["Dog", "a rain"]


def test_a_folder_for_each_sound(tmp_path):
    for name in ("dog/2.wav", "dog/1.wav", "rain/x.mp4", ".git/no.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [(c.path.name, c.heard) for c in own_clips(tmp_path)]
    assert found == [("1.wav", ("dog",)), ("2.wav", ("dog",)), ("x.mp4", ("rain",))]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file_name,label\na.wav,dog\n", "got the columns file_name, label, expected"),
        ("", "add file_name and sound"),
        ("file_name,sound\na.wav,dog\nb.wav,\n", "line 3 has no file_name or no sound"),
        ("file_name,sound\na.wav,dog\nb.wav,Dogs\n", "got only dog, expected at least two"),
    ],
)
def test_a_table_that_will_not_do(tmp_path, text, told):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=told):
        vocabulary(own_clips(tmp_path / "t.csv"))


def test_a_folder_without_labels(tmp_path):
    with pytest.raises(ValueError, match=r"got neither metadata\.csv nor folders with clips"):
        own_clips(tmp_path)


# Tiny


@pytest.fixture(scope="module")
def tiny() -> Engine:
    return vljax.load("tiny").engine


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("sound")
    argv = ["--n", "24", "--seed", "5", "--scales", "1,20", "--out", str(out), "--batch", "16"]
    assert evaluate_sound.main([*argv, "--png", str(out / "scale.png")]) == 0
    assert (out / "scale.png").stat().st_size > 5000
    assert json.loads((out / "scale.json").read_text())["clips"] == 24
    lines = (out / "answers.jsonl").read_text().splitlines()
    assert len(set(lines)) == len(lines) > 400
    return json.loads((out / "report.json").read_text())


@pytest.mark.slow
def test_tiny_names_what_it_hears_and_not_what_it_sees(report):
    for view in ("alone", "beside"):
        rows = report["conditions"][view]
        assert rows["real"]["own"]["accuracy"] > 0.8
        assert rows["real"]["seen"]["accuracy"] < 0.2
        assert rows["swapped"]["given"]["accuracy"] > 0.8
        assert rows["swapped"]["own"]["accuracy"] < 0.2
        assert rows["swapped"]["same"]["accuracy"] < 0.2
        for condition in ("muted", "none"):
            assert rows[condition]["own"]["accuracy"] < 0.2
            assert rows[condition]["any"]["accuracy"] < 0.2
        assert rows["noise"]["same"]["accuracy"] < 0.5


@pytest.mark.slow
def test_tinys_claim_and_scales(report):
    claim = report["claim"]
    assert claim["real"]["low"] > max(claim["zeroed"]["high"], claim["muted"]["high"])
    assert claim["real"]["low"] > report["chance"] == claim["real"]["chance"] == 0.1667
    one, twenty = report["scales"]
    assert (one["own"], twenty["own"]) == (True, False)
    assert one["alone"] == claim["real"]
    assert twenty["alone"]["accuracy"] < one["alone"]["accuracy"]


@pytest.mark.slow
def test_tinys_probes_are_scored_as_they_come(report):
    for rows in report["probes"].values():
        assert rows["naming"]["accuracy"]["n"] == 48
        assert rows["naming"]["accuracy"]["accuracy"] > 0.85
        assert rows["naming"]["hallucinated"]["adversarial"]["n"] == 12
        assert rows["words"]["neither"]["accuracy"] > 0.5  # it never learnt to say yes or no
        assert 0 <= rows["likelihood"]["ranked"]["low"] <= rows["likelihood"]["ranked"]["high"] <= 1


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two clips of the user's, a sound without a picture and two that can't be read."""
    folder = tmp_path_factory.mktemp("own")
    for number, (seen, heard) in enumerate((("bell", "siren"), ("drum", "bird"))):
        scene = Scene("one", (Thing(seen, "red", "left"),), (heard,), 2.0, 0.5, number)
        write_clip(folder / f"{heard}.mp4", frames(scene), waveform(scene))
    silent = Scene("one", (Thing("bell", "red", "left"),), None, 2.0, 0.5, 9)
    write_clip(folder / "silent.mp4", frames(silent), None)
    (folder / "clips.csv").write_text(
        "file_name,sound,shown\nsiren.mp4,The Sirens,bell\nbird.mp4,bird|chirp,drum\n"
        "silent.mp4,bell,bell\nnowhere.wav,car,\n"
    )
    return folder


@pytest.mark.slow
def test_own_clips_are_evaluated_and_unreadable_ones_named(own, tmp_path, capsys):
    argv = ["--clips", str(own / "clips.csv"), "--scales", "1", "--json", "--batch", "4"]
    argv += ["--out", str(tmp_path)]
    assert evaluate_sound.main(argv) == 1
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["clips"] == 2 and len(found["failed"]) == 2
    assert "silent.mp4" in told.err and "nowhere.wav" in told.err
    assert found["claim"]["real"]["accuracy"] == 1.0
    assert found["conditions"]["beside"]["swapped"]["given"]["accuracy"] == 1.0
    assert found["sounds"] == {"The Sirens": 1, "bird|chirp": 1}
    # What was said is kept: a run that was cut short goes on with it, and another is refused.
    answers = tmp_path / "answers.jsonl"
    whole = answers.read_text()
    changed = whole.replace('"A siren."', '"A bird."')
    answers.write_text(changed[: changed.rindex("\n") - 5])
    assert evaluate_sound.main(argv) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["claim"]["real"]["accuracy"] == 0.5
    assert sorted(answers.read_text().splitlines()) == sorted(changed.splitlines())
    with pytest.raises(ValueError, match=r"another run \(seed differ\)"):
        evaluate_sound.main([*argv, "--seed", "2"])


def test_the_towers_parts_are_the_whole(tiny, own):
    media, noise = read_sound(own / "siren.mp4", tiny.size, True, (0,))
    got = honesty._case(tiny, "0", Labelled(own / "siren.mp4", ("siren",)), media, noise)
    exam = Exam([got], ["siren"], [None], [], NOTHING, tiny.size.imagebind.sound.norm)
    made = honesty.given(tiny, exam, Ask(0, "real", "beside", ""))
    assert isinstance(made, Encoded)
    np.testing.assert_allclose(made.prompts, np.asarray(tiny.encode([media]))[0], atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(got.sound, axis=-1), exam.norm, rtol=1e-5)
    long_features = honesty.features(exam, 0, "x20")
    np.testing.assert_allclose(np.linalg.norm(long_features, axis=-1), 20, rtol=1e-5)
    assert not honesty.features(exam, 0, "x0").any()
    assert honesty.given(tiny, exam, Ask(0, "none", "alone", "")) is None
    assert noise.shape == media.mel.shape and not np.allclose(noise, media.mel)


def test_yes_is_weighed_against_no(tiny, own):
    media, _ = read_sound(own / "siren.mp4", tiny.size, True, (0,))
    sound = long.sound_features(tiny, media.mel)
    cases = [Case(str(i), ("siren",), (), sound * (1 - i), sound) for i in range(2)]
    exam = Exam(cases, ["siren"], [None, None], [], NOTHING, 1.0)
    asked = [Ask(i, "real", "alone", "Do you hear a siren?") for i in range(2)]
    asker = Asker(tiny, exam, 4)
    asker.run([], asked)
    requests = [Request(a.question, honesty.given(tiny, exam, a)) for a in asked]
    told = (log_likelihoods(tiny, requests, [word] * 2) for word in ("Yes.", "No."))
    yes, no = (np.array([likelihood.nats for likelihood in part]) for part in told)
    np.testing.assert_allclose([asker.preference(a) for a in asked], yes - no, atol=1e-3)
    assert [asker.answer(a) for a in asked] == tiny.answer(requests, asker.sampling)


def test_answers_are_written_anew_only_where_a_line_was_cut(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    row = {"condition": "real", "view": "alone", "clip": "a", "question": "?", "answer": "café"}
    whole = b'{"seed": 1}\n' + json.dumps(row, ensure_ascii=False).encode() + b"\n"
    path.write_bytes(whole + "é".encode()[:1])  # cut within a letter
    assert list(Asker(None, None, path=path, settings={"seed": 1}).said.values()) == ["café"]
    assert path.read_bytes() == whole
    monkeypatch.setattr(Path, "write_text", None)
    Asker(None, None, path=path, settings={"seed": 1})


def test_settings_tell_the_weights_apart(monkeypatch):
    settings = {}

    def asker(*given):
        settings.update(given[-1])
        raise InterruptedError

    exam = Exam([], [], [], [], NOTHING, 1.0)
    monkeypatch.setattr(honesty, "read_exam", lambda *_: (exam, []))
    monkeypatch.setattr(honesty, "Asker", asker)
    with pytest.raises(InterruptedError):
        evaluate_sound.evaluate(evaluate_sound.parse([]), None, [])
    assert settings["weights"] == manifest_hash(TINY_WEIGHTS)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--n", "1"], "--n: got 1"),
        (["--batch", "65"], "--batch: got 65"),
        (["--yes-no", "Is it?"], "--yes-no: got 'Is it\\?'"),
        (["--scales", "1,x"], "--scales: expected numbers"),
        (["--png", "a.jpg"], "--png: got a.jpg"),
    ],
)
def test_what_cannot_be_meant_is_told_first(argv, told):
    with pytest.raises(ValueError, match=told):
        evaluate_sound.parse(argv)
