"""A hang ends the process, with all stacks told, wherever it hangs."""

import subprocess
import sys
import time

import pytest

from vljax.train.watch import HUNG, Watchdog

PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from vljax.train import watch
watch.GRACE = 0.2
def hangs():
    {hang}
with watch.Watchdog(0.2, Path(sys.argv[1])) as dog:
    dog.beat()
    hangs()
"""
IN_PYTHON = "time.sleep(60)"
IN_C = "ctypes.CDLL(None).sleep(60)"
IN_C_WITH_THE_LOCK = "ctypes.PyDLL(None).sleep(60)"


@pytest.mark.parametrize(
    ("hang", "code"), [(IN_PYTHON, HUNG), (IN_C, HUNG), (IN_C_WITH_THE_LOCK, 1)]
)
def test_a_hang_is_told_and_ended(tmp_path, hang, code):
    file = tmp_path / "stacks.txt"
    program = PROGRAM.format(hang=hang)
    run = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, timeout=30
    )
    assert run.returncode == code
    assert "in hangs" in run.stderr
    if code == HUNG:
        assert "no step was done in 0.2 s" in run.stderr
        assert "in hangs" in file.read_text()


def test_a_run_that_goes_on_is_left_alone(tmp_path):
    with Watchdog(0.2, tmp_path / "stacks.txt") as dog:
        time.sleep(0.3)  # the first step may take longer
        for _ in range(5):
            dog.beat()
            time.sleep(0.1)
    with Watchdog(0, tmp_path / "stacks.txt"):
        pass
    assert not (tmp_path / "stacks.txt").exists()
