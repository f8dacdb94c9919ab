"""``vljax bench data``: what it measures is the right work, and its figures are those it says."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from vljax.bench import data, original
from vljax.bench.clips import make_clips
from vljax.bench.data import Timing, needed_packets, our_job, summary, table
from vljax.cli import main as cli
from vljax.data.decode_worker import Decoders


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, 1, seconds=1.2)
    return folder


@pytest.fixture
def run(capsys):
    """-> (exit code, stdout, stderr) of ``vljax bench ...``."""

    def call(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main(["bench", *(str(a) for a in argv)])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_clips_are_what_they_are_said_to_be(clips):
    told = data.describe(clips / "0.mp4")
    assert (told["codec"], told["size"]) == ("h264", [1280, 720])
    assert (told["frames"], told["keyframes"]) == (36, 1)
    assert 0.2 < told["mbit_a_second"] < 8
    load, *args = our_job(clips / "0.mp4")
    media = load(*args)
    assert media.frames.shape == (8, 224, 224, 3)
    assert media.mel.shape == (8, 128, 204)
    moved = np.abs(media.frames[0].astype(int) - media.frames[7])
    assert moved.mean() > 5
    assert media.mel.std() > 0.1


def test_ours_alone(clips, run, monkeypatch):
    monkeypatch.setattr(original, "NEEDED", ("no_such_package",))
    flags = ("--clips", clips, "--rounds", 1, "--jobs", 2, "--workers", 1)
    code, out, err = run("data", *flags, "--json")
    assert code == 0
    assert "without no_such_package ours is measured alone; for the original's recipe pip" in err
    report = json.loads(out)
    assert "original" not in report
    ours = report["ours"]["1"]
    assert ours["clips_a_second"] > 0 and ours["cpu_ms"] > 0 and ours["scaling"] == 1
    assert [clip["name"] for clip in report["clips"]] == ["0.mp4"]
    assert 0 < report["floor_ms"] == ours["cpu_ms"] / (1 + report["over_floor"])
    assert f"libavcodec alone takes {report['floor_ms']:.1f} CPU ms" in table(report)


def test_figures_are_medians_ratios_and_shares():
    ours, theirs = [Timing(10, 1, 1), Timing(10, 2, 1.5), Timing(10, 9, 9)], [Timing(10, 5, 4.5)]
    two = [Timing(10, 1.25, 2)]
    timings = {("ours", 1): ours, ("original", 1): theirs, ("ours", 2): two, ("original", 2): two}
    report = summary(timings, floor=0.12)
    assert report["ours"]["1"] == {"clips_a_second": 5, "cpu_ms": 150, "scaling": 1}
    assert report["ours"]["2"] == {"clips_a_second": 8, "cpu_ms": 200, "scaling": 0.8}
    assert report["original"]["2"]["scaling"] == 2
    assert report["ratio"] == {"1": 2.5, "2": 1}
    assert report["cpu_ratio"] == {"1": 3, "2": 1}
    assert report["floor_ms"] == 120
    assert report["over_floor"] == pytest.approx(0.25)
    lines = table(report | {"apart": {"pixels": 0.5, "mel": 0.1}}).splitlines()
    assert lines[4].split() == ["ratio", "2.50", "3.00", "1.00", "1.00"]
    assert lines[5] == "scaling with workers, ours: 2: 80%"


def test_the_floor_decodes_what_is_needed_and_no_more(tmp_path):
    from tests.data.conftest import grey_frames, tone, write

    options = {"g": "10", "keyint_min": "10", "bf": "2"}
    path = write(tmp_path / "a.mp4", grey_frames(60), tone(2.4, 16000, 1), options=options)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        needed, wanted = needed_packets(packets, 3)
        shown = [f.pts for p in needed for f in p.decode()]
        shown += [f.pts for f in container.streams.video[0].codec_context.decode(None)]
    assert len(wanted) == 3 and wanted <= set(shown)
    assert len(needed) == 3  # frames 0, 20 and 40 are keyframes
    assert data.decode_alone(str(path)) > 0


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["data", "--rounds", "0"], 2, "--rounds: got 0, expected at least 1"),
        (["data", "--clips", "nowhere"], 1, "--clips: got nowhere, expected a folder with clips"),
        (["nothing"], 2, "invalid choice: 'nothing'"),
    ],
)
def test_wrong_calls(run, argv, code, told):
    got, out, err = run(*argv)
    assert (got, out) == (code, "")
    assert told in err


def test_clips_that_will_not_do(run, clips, tmp_path):
    from tests.data.conftest import grey_frames, write

    code, _, err = run("data", "--clips", clips, "--workers", 1000)
    assert (code, "workers: got 1000, expected 1 to" in err) == (1, True)
    write(tmp_path / "a.mp4", grey_frames(5))
    code, _, err = run("data", "--clips", tmp_path)
    assert (code, "a.mp4: got no picture or no sound" in err) == (1, True)
    (tmp_path / "a.mp4").write_text("no clip")
    code, _, err = run("data", "--clips", tmp_path)
    assert (code, "a.mp4: can't be read" in err) == (1, True)


def test_the_original_makes_the_same_of_a_clip(clips):
    if original.missing():
        pytest.skip(f"needs {', '.join(original.missing())}")
    with Decoders(1) as decoders:
        apart = data.compare([clips / "0.mp4"], decoders)
    assert apart["pixels"] < 2
    assert apart["mel"] < 0.3
