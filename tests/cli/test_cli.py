"""The console script in this process: exit codes, one sentence for what a user can mend."""

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

import vljax
from vljax.cli import main as cli
from vljax.data.world.files import write_clip
from vljax.models.sizes import TINY

ROOT = Path(__file__).parent.parent.parent
WEIGHTS = ROOT / "vljax" / "weights" / "tiny"


class Parrot:
    """An engine that says what it was given."""

    size = TINY

    def senses(self, look, listen):
        return look, listen

    def answer(self, requests, sampling, seed):
        given = requests[0].media
        kinds = {"picture": given.frames is not None, "sound": given.mel is not None}
        heard = " and ".join(n for n, there in kinds.items() if there)
        return [f"{requests[0].question} {heard} {len(requests[0].history)}"]


class ParrotSession:
    """What a conversation asks; its answers come in words."""

    def __init__(self, engine):
        self.engine = engine

    def answer(self, request, sampling, seed):
        return self.engine.answer([request], sampling, seed)[0]

    def stream(self, request, sampling, seed):
        yield from re.findall(r"\S+ ?", self.answer(request, sampling, seed))


@pytest.fixture
def parrot(monkeypatch):
    monkeypatch.setattr("vljax.generate.chat.Session", ParrotSession)
    monkeypatch.setattr(
        "vljax.generate.chat.load", lambda name, dtype, **_: SimpleNamespace(engine=Parrot())
    )


@pytest.fixture
def run(capsys):
    """-> (exit code, stdout, stderr) of a command line."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def clip(tmp_path):
    """Two seconds of noise to see and to hear."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (16, 48, 48, 3), np.uint8)
    write_clip(tmp_path / "a.mp4", frames, rng.uniform(-0.5, 0.5, 32000).astype(np.float32))
    return tmp_path / "a.mp4"


def one_sentence(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert (code, out) == (1, "")
    lines = [x for x in err.splitlines() if "only its own world of six icons" not in x]
    assert len(lines) == 1
    assert lines[0].startswith("vljax ")
    for part in parts:
        assert part in lines[0]


def test_help_names_every_verb(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: vljax VERB")
    assert {line.split()[0] for line in out.splitlines()[2:]} == set(cli.VERBS)


def test_a_package_that_is_missing_is_named_with_what_brings_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # can't be imported
    (tmp_path / "media").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "media" / "a.png")
    (tmp_path / "media" / "a.txt").write_text("A red square.")
    argv = [
        "--family=folder",
        f"--annotations={tmp_path / 'media'}",
        f"--media={tmp_path / 'media'}",
    ]
    one_sentence(
        run("data", "prepare", *argv, f"--out={tmp_path / 'out'}"),
        "tensorflow is not installed",
        "pip install 'vljax[data]'",
    )


@pytest.mark.parametrize("what", ["long", "sound"])
def test_a_chart_that_can_t_be_drawn_is_told_before_anything_is_asked(run, monkeypatch, what):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    one_sentence(run("evaluate", what, "--png=curves.png"), "need matplotlib")
    one_sentence(run("evaluate", what, "--png=curves.jpg"), "--png: got curves.jpg")


def test_no_verb_is_a_wrong_call(run):
    code, out, _ = run()
    assert code == 2
    assert out.startswith("usage: vljax VERB")


def test_version(run):
    assert run("--version") == (0, f"vljax {vljax.__version__}\n", "")


def test_an_unknown_verb(run):
    code, out, err = run("chatt")
    assert (code, out) == (2, "")
    assert err == f"vljax: got 'chatt', expected one of {', '.join(cli.VERBS)}\n"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(run, verb):
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: vljax {verb}")


def test_ctrl_c(run, monkeypatch):
    def stop(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("vljax.cli.make_world.main", stop)
    assert run("make-world") == (130, "", "vljax make-world: stopped\n")


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("VLJAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="--n: got 2"):
        cli.main(["make-world", "--out", "nowhere", "--n", "2"])


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ([], "Who? picture and sound 0"),
        (["--no-audio"], "Who? picture 0"),
        (["--no-video"], "Who? sound 0"),
    ],
)
def test_chat(run, parrot, clip, flags, answer):
    code, out, _ = run("chat", clip, "--ask", "Who?", *flags)
    assert (code, out) == (0, answer + "\n")


def test_chat_as_json(run, parrot, clip):
    code, out, _ = run("chat", clip, "--ask", "Who?", "--ask", "What?", "--json")
    data = json.loads(out)
    assert code == 0
    assert (data["clip"], data["frames"], data["sound"]) == (str(clip), True, True)
    said = [(a["question"], a["answer"]) for a in data["answers"]]
    assert said == [("Who?", "Who? picture and sound 0"), ("What?", "What? picture and sound 2")]


def test_chat_about_an_image(run, parrot, tmp_path):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    code, out, _ = run("chat", tmp_path / "a.png", "--ask", "Who?")
    assert (code, out) == (0, "Who? picture 0\n")


def test_chat_until_the_input_ends(run, parrot, clip, monkeypatch):
    lines = iter(["Who?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    code, out, err = run("chat", clip)
    assert (code, out) == (0, "Who? picture and sound 0\n")
    assert "ask away" in err


def test_chat_streams(run, parrot, clip, monkeypatch):
    """Each piece is on the terminal before the next one is made."""
    lines, shown = iter(["Who?", ""]), []

    class Told(io.StringIO):
        def flush(self):
            shown.append(self.getvalue())

    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    monkeypatch.setattr("sys.stdout", Told())
    assert cli.main(["chat", str(clip)]) == 0
    words = ["Who?", "picture", "and", "sound", "0"]
    assert shown[:5] == [" ".join(words[: i + 1]) + " " * (i < 4) for i in range(5)]


def test_prompts_of_a_chat(run, parrot, clip):
    code, out, _ = run("chat", clip, "--ask", "Who?", "--print-prompt")
    assert code == 0
    prompt, told = out.splitlines()
    assert prompt.endswith("</Video>  Who?###Assistant:")
    assert ", 16 of them media: " in told and told.count("<ImageHere> x 8") == 2
    code, out, err = run("chat", clip, "--print-prompt")
    assert (code, out) == (2, "") and "--print-prompt needs --ask" in err


def test_chat_draws_what_the_model_gets(run, parrot, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = f"{clip.name}-shown.png"
    code, *_ = run("chat", clip, "--ask", "Who?", "--show")
    assert code == 0
    with Image.open(tmp_path / shown) as picture:
        assert min(picture.size) > 100
    one_sentence(run("chat", clip, "--ask", "Who?", "--show"), shown, "is there already")


def test_chat_on_a_missing_file(run, parrot, tmp_path):
    one_sentence(run("chat", tmp_path / "no.mp4", "--ask", "Who?"), "vljax chat: ", "no.mp4")


def test_chat_on_an_empty_file(run, parrot, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    one_sentence(run("chat", tmp_path / "empty.mp4", "--ask", "Who?"), "empty.mp4", "empty")


@pytest.mark.parametrize("name", ["notes.txt", "notes.mp4", "notes.jpg"])
def test_chat_on_text(run, parrot, tmp_path, name):
    (tmp_path / name).write_text("Dear diary, today nothing happened.\n" * 50)
    one_sentence(run("chat", tmp_path / name, "--ask", "Who?"), name)


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=16000, layout="mono")
        samples = np.random.default_rng(0).integers(-9999, 9999, (1, 32000), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        frame.sample_rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def test_chat_on_a_file_without_a_picture(run, parrot, tmp_path):
    write_sound(tmp_path / "a.wav")
    one_sentence(run("chat", tmp_path / "a.wav", "--ask", "Who?"), "a.wav")


def test_chat_with_nothing_left(run, parrot, clip):
    sentence = "got no picture to look at and no sound"
    one_sentence(run("chat", clip, "--ask", "Who?", "--no-video", "--no-audio"), sentence)


def test_chat_with_a_folder_that_holds_no_weights(run, clip, tmp_path):
    result = run("chat", clip, "--ask", "Who?", "--model", tmp_path)
    one_sentence(result, "got no manifest.json, expected a folder of weights")


def test_chat_checks_sampling_first(run, clip):
    one_sentence(
        run("chat", clip, "--ask", "Who?", "--temperature", "-1"), "temperature: got -1.0, expected"
    )


def test_json_needs_a_question(run):
    code, out, err = run("chat", "--json")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "vljax chat: error: --json needs --ask"


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="vljax/weights/tiny is not in this checkout")
def test_chat_about_the_sample(run):
    code, out, _ = run("chat", "--ask", "What do you see?", "--json", "--max-new-tokens", "8")
    assert code == 0
    assert json.loads(out)["answers"][0]["answer"]


@pytest.mark.parametrize(
    ("config", "trainable"),
    [
        ("vision_pretrain.py:size=7b", 22_104_064),
        ("vision_pretrain.py:size=13b", 22_891_520),
        ("audio_pretrain.py:size=7b", 22_855_680),
        ("audio_pretrain.py:size=13b", 23_643_136),
        ("vision_finetune.py:size=7b,llm=llama2,sharding=fsdp_tp", 22_104_064),
        ("audio_finetune.py:size=13b", 23_643_136),
        ("vision_pretrain.py", 22_104_064),
        ("audio_finetune.py:llm=llama2", 22_855_680),
        ("vision_pretrain.py:llm=smollm2_135m", 19_397_184),
        ("audio_finetune.py:size=135m,llm=smollm2_135m", 20_148_800),
    ],
)
def test_parameters_of_the_published_sizes(run, config, trainable):
    code, out, _ = run("train", f"--config={ROOT}/configs/{config}", "--print-parameters", "--json")
    table = json.loads(out)
    assert code == 0
    assert table["trainable"] == trainable
    counts = {"13b": 13_015_864_320, "135m": 134_515_008}
    llama = next((n for size, n in counts.items() if size in config), 6_738_415_616)
    rows = {row["module"]: row for row in table["rows"]}
    assert rows["llama"]["parameters"] == llama
    assert rows["llama"]["bytes"] == 2 * llama  # bfloat16
    assert not rows["llama"]["trainable"]
    for kind, flag in (("trainable", True), ("frozen", False)):
        chosen = [r["parameters"] for r in rows.values() if r["trainable"] == flag]
        assert table[kind] == sum(chosen)


def test_parameters_of_every_stage(run):
    code, out, _ = run("train", f"--config={ROOT}/configs/tiny.py", "--print-parameters", "--json")
    tables = json.loads(out)
    assert code == 0
    assert list(tables) == [
        "text",
        "image",
        "imagebind",
        "vision_pretrain",
        "vision_finetune",
        "audio_pretrain",
        "audio_finetune",
    ]
    audio = {r["module"] for r in tables["audio_finetune"]["rows"]}
    assert "imagebind/vision" in audio
    assert "imagebind/sound" not in audio


def test_parameters_as_a_table(run):
    config = f"--config={ROOT}/configs/tiny.py:stage=text"
    code, out, _ = run("train", config, "--print-parameters")
    assert code == 0
    assert out.splitlines()[0] == "text"
    assert out.splitlines()[-2].split()[-1] == "trainable"


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--config=nowhere.py"], ["nowhere.py"]),
        ([f"--config={ROOT}/configs/tiny.py:stage=dance"], ["stage: got 'dance', expected all or"]),
        ([f"--config={ROOT}/configs/tiny.py:size=7b"], ["got 'size', expected one of stage, sha"]),
        (
            [f"--config={ROOT}/configs/tiny.py:stage=text", "--config.stpes=3"],
            ["stpes"],
        ),
        (
            [f"--config={ROOT}/configs/tiny.py:stage=text"],
            ["--config.workdir: got nothing, expected a folder"],
        ),
        ([f"--config={ROOT}/configs/tiny.py"], ["--config.workdir: got nothing"]),
        (
            [f"--config={ROOT}/configs/vision_pretrain.py:size=70b", "--print-parameters"],
            ["size=70b,llm=vicuna: no such model; choose one of size=tiny,llm=vicuna"],
        ),
        (
            [
                f"--config={ROOT}/configs/vision_pretrain.py:size=7b,llm=smollm2_135m",
                "--print-parameters",
            ],
            ["size=7b,llm=smollm2_135m: no such model; choose one of"],
        ),
        (
            [f"--config={ROOT}/configs/vision_pretrain.py:llm=gpt"],
            ["llm: got gpt, expected one of vicuna, llama2, smollm2_135m"],
        ),
    ],
)
def test_train_on_a_bad_config(run, argv, parts):
    one_sentence(run("train", *argv), "vljax train: ", *parts)


def test_train_wants_a_config(run):
    code, _, err = run("train")
    assert code == 2
    assert "name a config" in err


@pytest.mark.parametrize("n", [2, 0, -5])
def test_make_world_with_too_few_clips(run, tmp_path, n):
    result = run("make-world", "--out", tmp_path / "world", "--n", n)
    one_sentence(result, f"--n: got {n}, expected at least 3")
    assert not (tmp_path / "world").exists()


def test_make_world_does_not_overwrite(run, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    one_sentence(run("make-world", "--out", tmp_path), "not empty; name a new folder")


@pytest.mark.parametrize("what", [["world"], ["--world"], ["long"], ["--seed", "3", "--live"]])
def test_evaluate_with_too_few_clips(run, what):
    one_sentence(run("evaluate", *what, "--n", "0"), "--n: got 0, expected at least 1")


def test_evaluate_with_nothing_to_measure(run):
    code, _, error = run("evaluate", "worlds")
    assert code == 2
    assert "got 'worlds', expected one of world, long, live, " in error


@pytest.mark.parametrize("what", ["world", "long", "live"])
def test_exams_want_weights_that_see_and_hear(run, monkeypatch, what):
    deaf = SimpleNamespace(engine=SimpleNamespace(sees=True, hears=False))
    monkeypatch.setattr("vljax.generate.chat.load", lambda name: deaf)
    told = "--model: deaf has no audio branch; name a model that both sees and hears"
    one_sentence(run("evaluate", what, "--model", "deaf", "--n", "1"), told)
