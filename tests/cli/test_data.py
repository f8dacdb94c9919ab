"""``vljax data`` on a small world in the real sets' layouts."""

import json
from pathlib import Path

import pytest

from vljax.cli import main as cli
from vljax.data.world.files import make_world

TINY = f"{Path(__file__).parent.parent.parent}/configs/tiny.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run") / "world"
    make_world(root, 14, 0)
    return root


@pytest.fixture
def run(capsys, monkeypatch):
    """-> (exit code, stdout, stderr) of ``vljax data ...``."""

    def call(*argv: object, verb: str = "data") -> tuple[int, str, str]:
        capsys.readouterr()
        line = [verb, *(str(a) for a in argv)]
        monkeypatch.setattr("sys.argv", ["vljax", *line])  # where ml_collections looks
        try:
            code = cli.main(line)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def config(world: Path, stage: str, sources: tuple[str, ...] = ()) -> list[str]:
    """Flags of a stage of tiny on the world, with batches that it can fill."""
    batches = [f"--config.sources.{name}.batch_size=4" for name in sources]
    return [f"--config={TINY}:stage={stage}", f"--config.workdir={world.parent}/new", *batches]


FINETUNE = ("align", "llava", "see", "videochat")


def test_check_of_a_config(run, world):
    code, out, err = run("check", *config(world, "vision_finetune", FINETUNE), "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True)
    assert {s["name"]: s["limit"] for s in report["sources"]} == dict.fromkeys(FINETUNE, 256) | {
        "align": 64
    }
    assert all(s["looked"] == s["records"] > 4 and not s["problems"] for s in report["sources"])
    assert "see: records" in err
    assert "ETA" in err


def test_check_exits_1_on_what_breaks(run, world):
    code, out, _ = run("check", *config(world, "vision_finetune"), "--source", "llava")
    assert code == 1  # batches of 32
    assert "ERROR" in out
    assert "expected at least 32" in out


def test_check_of_a_family(run, world, tmp_path):
    family = ("--family", "webvid", "--annotations", world / "train/webvid/captions.csv")
    code, out, _ = run("check", *family, "--media", world / "train/videos", "--sample", 3)
    assert code == 0
    assert "3 looked at" in out
    code, out, _ = run("check", *family, "--media", tmp_path)
    assert code == 1
    assert "media files are not there" in out


def test_preview(run, world, tmp_path):
    flags = (*config(world, "audio_finetune"), "--source", "instruct", "--n", 1)
    assert run("preview", *flags, "--out", tmp_path / "a.png")[:2] == (0, f"{tmp_path}/a.png\n")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    code, _, err = run("preview", *flags, "--out", tmp_path / "a.png")
    assert code == 1
    assert "is there already; name a new file" in err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["check"], "name either --config, or --family"),
        (["check", "--config", "x", "--family", "webvid"], "name either --config, or --family"),
        (["check", "--family", "webvid", "--sample", "0"], "--sample: got 0"),
        (["check", "--family", "webvid", "--what"], "got '--what'"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_wrong_calls(run, argv, told):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert told in err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--family", "webvid", "--annotations", "no.csv"], "no.csv: not there"),
        (["--family", "nothing"], "family: got 'nothing'"),
        ([f"--config={TINY}:stage=text"], "has not a source that reads files"),
    ],
)
def test_mistakes_are_told_in_a_sentence(run, argv, told):
    code, out, err = run("check", *argv)
    assert (code, out) == (1, "")
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_prepare_of_a_family(run, world, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    family = ("--family", "llava", "--annotations", world / "train/see_instruct.json")
    flags = (*family, "--media", world / "train/videos", "--options", '{"tags": ["", ""]}')
    code, out, err = run("prepare", *flags, "--out", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path}/out/llava/1.0.0\n")
    raw = run("check", *family, "--media", world / "train/videos", "--json")
    stored = run("check", "--records", tmp_path / "out", "--json")
    assert (raw[0], stored[0]) == (0, 0)
    a, b = (json.loads(x[1])["sources"][0] for x in (raw, stored))
    assert a | {"name": ""} == b | {"name": ""}
    code, _, err = run("prepare", *flags, "--out", tmp_path / "out")
    assert code == 1
    assert "not empty" in err
