"""Whatever ends a run, and whenever: it goes on, and ends as if nothing had been."""

import random
import re
import signal
import time
from pathlib import Path

import pytest

from vljax.train.watch import HUNG

KILLS = 20
FLAGS = ("--objective", "text", "--steps", "60", "--save-every", "2", "--pause", "0.01")


@pytest.fixture(scope="module")
def command(small_run):
    def make(workdir: Path, processes: int, *flags: str) -> list[str]:
        own = [c.replace("{workdir}", str(workdir)) for c in small_run]
        return [*own, *FLAGS, "--cpu-devices", str(2 // processes), *flags]

    return make


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def whole(request, chaos, command, tmp_path_factory):
    """An undisturbed run: its processes, its folder and how long its first row took."""
    workdir = tmp_path_factory.mktemp("chaos") / "whole"
    return (
        request.param,
        workdir,
        chaos.undisturbed(command(workdir, request.param), request.param, workdir),
    )


@pytest.mark.slow
def test_kills_change_nothing(whole, chaos, command, tmp_path):
    processes, undisturbed, first = whole
    workdir = tmp_path / "killed"
    made = command(workdir, processes)
    kills = chaos.kill_until_done(made, processes, workdir, KILLS, first, random.Random(processes))
    assert len(kills) == KILLS and any(cut_short for _, _, cut_short in kills)
    assert chaos.differences(undisturbed, workdir) == []
    assert len(chaos.rows(workdir)) == 60


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_loses_no_step(whole, chaos, command, tmp_path, number):
    processes, undisturbed, _ = whole
    workdir = tmp_path / "stopped"
    made = command(workdir, processes, "--save-every", "1000")
    codes = chaos.stop(made, processes, workdir, number, chaos.new_rows(workdir, 3))
    assert codes == [128 + number] * processes
    before = chaos.rows(workdir)
    steps = [int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()]
    assert steps == [len(before)] and 3 <= len(before) < 60
    chaos.undisturbed(made, processes, workdir)
    assert chaos.rows(workdir)[: len(before)] == before
    assert chaos.differences(undisturbed, workdir) == []
    told = re.findall(r"small_run (\d+)/60", workdir.with_suffix(".log").read_text())
    assert sorted(map(int, told)) == list(map(int, told))  # nothing was done twice


@pytest.mark.slow
def test_data_that_never_come_end_the_run(chaos, command, tmp_path):
    workdir, began = tmp_path / "hung", time.monotonic()
    made = command(workdir, 1, "--hang-at", "2", "--watchdog", "5")
    [process] = chaos.start(made, 1, workdir.with_suffix(".log"))
    assert process.wait(120) == HUNG
    assert time.monotonic() - began > 5
    for told in (workdir.with_suffix(".log"), workdir / "stacks_0.txt"):
        assert re.search(r"small_run\.py\", line \d+ in batches", told.read_text())
