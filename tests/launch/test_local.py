"""The launcher of this machine, with a stand-in for vljax: signals, deaths, exit codes, logs."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "local" / "train.sh"
STAND_IN = """#!/usr/bin/env bash
me="${@: -1}"
echo "process $me here"
trap 'echo "process $me saved"; exit 143' TERM
trap 'echo "process $me saved"; exit 130' INT
%s
"""
# The shell tells of a child that a signal ends, which is no word of the stand-in's.
WAITS = "touch $READY.$me; for i in $(seq 300); do sleep 0.1; done 2>/dev/null"


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Starts two processes that do as told, and waits until ``ready`` of them are."""

    def start(does: str, ready: int = 2, *flags: str) -> subprocess.Popen:
        program = tmp_path / "bin" / "vljax"
        program.parent.mkdir()
        program.write_text(STAND_IN % does)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("READY", str(tmp_path / "ready"))
        # A shell can't trap what was ignored when it began, as in a background job.
        command = [
            "env",
            "--default-signal=INT",
            SCRIPT,
            "c.py",
            tmp_path / "run",
            "--processes",
            "2",
            *flags,
        ]
        started = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(100):
            if len(list(tmp_path.glob("ready.*"))) >= ready:
                break
            time.sleep(0.1)
        return started

    return start


def logs(folder: Path) -> list[str]:
    return [(folder / "run" / "logs" / f"process_{i}.log").read_text() for i in (0, 1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_its_code_comes_back(launch, tmp_path, number):
    started = launch(WAITS)
    started.send_signal(number)
    assert started.wait(20) == 128 + number
    for i, log in enumerate(logs(tmp_path)):
        assert log.startswith(f"process {i} here\n") and log.endswith(f"process {i} saved\n")
    assert "process 0 saved" in started.stdout.read()


def test_when_one_fails_the_others_are_ended(launch, tmp_path):
    began = time.monotonic()
    started = launch(f"if [ $me = 1 ]; then exit 7; fi; {WAITS}", 0)
    out, _ = started.communicate(timeout=20)
    assert started.returncode == 7 and time.monotonic() - began < 20
    assert "ended with 7; the others are ended, see" in out


def test_when_all_finish_so_does_it(launch):
    started = launch("true", 0)
    assert started.wait(20) == 0


def test_a_dry_run_shows_the_commands(launch, tmp_path):
    started = launch("exit 9", 0, "--devices", "4", "--dry-run", "--config.steps=3")
    lines = started.communicate(timeout=20)[0].splitlines()
    assert started.returncode == 0 and not (tmp_path / "run").exists()
    for i, line in enumerate(lines):
        assert line.startswith(f"vljax train --config=c.py --config.workdir={tmp_path / 'run'} ")
        assert "--config.steps=3 --cpu-devices 4 --coordinator 127.0.0.1:" in line
        assert line.endswith(f"--processes 2 --process {i}")
    assert len(lines) == 2


def test_gpus_are_handed_out_in_turn(launch):
    started = launch("exit 9", 0, "--devices", "2", "--gpu", "--dry-run")
    lines = started.communicate(timeout=20)[0].splitlines()
    assert [line.split()[0] for line in lines] == [
        f"CUDA_VISIBLE_DEVICES={x}" for x in ("0,1", "2,3")
    ]


def test_a_number_that_is_none(launch):
    started = launch("exit 9", 0, "--devices", "many")
    assert started.wait(20) == 2
    assert "--devices: got 'many', expected a number" in started.stdout.read()
