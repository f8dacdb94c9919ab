"""Worker processes: whatever a job does to its own, the others and the main one go on."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vljax.data.clips import FrameSpec, load_media
from vljax.data.decode_worker import Closed, DecoderDied, Decoders
from vljax.data.examples import Record
from vljax.data.video import MediaError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def decoders():
    with Decoders(workers=1, seconds=2.0, memory=3 << 30) as decoders:
        yield decoders


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends within so many seconds; one that nobody collects has ended, too."""
    stat = Path(f"/proc/{pid}/stat")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            if stat.is_file() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_answers_come_back_and_so_do_errors(decoders, tmp_path):
    assert decoders.submit(divmod, 17, 5).result() == (3, 2)
    with pytest.raises(ZeroDivisionError):
        decoders.submit(divmod, 1, 0).result()
    record = Record("a", tmp_path / "a.mp4", "video")
    with pytest.raises(MediaError, match=r"a\.mp4: got no such file"):
        decoders.submit(load_media, record, FrameSpec(), None).result()
    assert decoders.submit(print, "what is printed is no answer").result() is None


def test_errors_that_cannot_be_read_back_are_told(decoders):
    with pytest.raises(ValueError, match=r"utf-8"):
        decoders.submit(eval, "b'\\xff'.decode()").result()
    code = "type('Odd', (Exception,), {})('hm')"
    with pytest.raises(ValueError, match="Odd: hm"):
        decoders.submit(exec, f"raise {code}").result()


@pytest.mark.parametrize(
    ("function", "args", "told"),
    [
        (ctypes.string_at, (0,), "it crashed the decoder (SIGSEGV)"),
        (os.abort, (), "it crashed the decoder (SIGABRT)"),
        (os._exit, (3,), "it ended the decoding process (status 3)"),
    ],
)
def test_a_job_that_kills_its_worker_is_told_and_the_next_is_done(decoders, function, args, told):
    with pytest.raises(DecoderDied, match=re.escape(told)):
        decoders.submit(function, *args).result()
    assert decoders.submit(abs, -1).result() == 1


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (time.sleep, (1000,)),
        (re.match, ("(a+)+$", "a" * 50 + "b")),  # never comes back to Python's signal handlers
    ],
)
def test_a_job_that_hangs_is_stopped(decoders, function, args):
    began = time.monotonic()
    with pytest.raises(DecoderDied, match="took longer than 2 s and was stopped"):
        decoders.submit(function, *args).result()
    assert time.monotonic() - began < 30
    assert decoders.submit(abs, -1).result() == 1


def test_a_worker_that_was_killed_from_outside_costs_nothing(decoders):
    assert decoders.submit(abs, -1).result() == 1
    [pid] = decoders.pids()
    os.kill(pid, signal.SIGKILL)
    assert decoders.submit(abs, -2).result() == 2
    assert decoders.pids() != [pid] and gone(pid)


def test_signals_of_the_group_are_the_main_process_s_alone(decoders):
    pid = decoders.submit(os.getpid).result()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert decoders.submit(os.getpid).result() == pid


def test_memory_has_a_limit(decoders):
    with pytest.raises(MemoryError):
        decoders.submit(bytearray, 8 << 30).result()


def test_workers_are_light(decoders):
    heavy = ("jax", "tensorflow", "flax", "torch", "transformers", "sentencepiece")
    code = f"[m for m in {heavy} if m in __import__('sys').modules]"
    assert decoders.submit(eval, code).result() == []


def test_closing_ends_workers_and_fails_what_is_left():
    with Decoders(workers=2, seconds=60) as decoders:
        ids = {decoders.submit(os.getpid).result() for _ in range(4)}
        jobs = [decoders.submit(time.sleep, 50) for _ in range(5)]
        time.sleep(0.5)
        pids = decoders.pids()
    assert ids <= set(pids) and len(pids) == 2
    assert all(gone(pid) for pid in pids)
    for job in jobs:
        with pytest.raises(Closed):
            job.result(timeout=1)
    with pytest.raises(Closed, match="closed"):
        decoders.submit(abs, -1)


@pytest.mark.parametrize(("workers", "seconds"), [(0, 1), (1, 0)])
def test_limits_that_make_no_sense(workers, seconds):
    with pytest.raises(ValueError, match="expected 1 or more of each"):
        Decoders(workers, seconds)


MAIN = """
import os, sys, time
from vljax.data.decode_worker import Decoders
decoders = Decoders(2, seconds=6)
decoders.submit(os.getpid).result(); hung = [decoders.submit(time.sleep, 1000) for _ in range(2)]
while len(decoders.pids()) < 2: time.sleep(0.05)
time.sleep(1)
print(*decoders.pids(), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["time.sleep(1000)", "sys.exit(0)", "raise ValueError('enough')"])
def test_no_worker_outlives_the_main_process(end):
    """Not even one that hangs when the main process is killed: its alarm is the kernel's."""
    main = subprocess.Popen(
        [sys.executable, "-c", MAIN.format(end=end)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    pids = [int(pid) for pid in main.stdout.readline().split()]
    assert len(pids) == 2
    if "sleep" in end:
        main.kill()
    main.wait(5)
    assert all(gone(pid, 15) for pid in pids)
