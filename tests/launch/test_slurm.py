"""The job script on a real SLURM of one machine: it is stopped, queued again, and goes on."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "launch" / "slurm"
STEPS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="daemons of a SLURM need root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))),
        reason="apt-get install slurm-wlm munge",
    ),
]


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """The environment of a user of a SLURM with one node of two processors and two GPUs."""
    folder = tmp_path_factory.mktemp("slurm")
    bin_ = folder / "bin"
    bin_.mkdir()
    (bin_ / "vljax").write_text(f'#!/bin/sh\nexec {sys.executable} -m vljax.cli.main "$@"\n')
    (bin_ / "vljax").chmod(0o755)
    state = folder / "state"
    values = os.environ | {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CHIP": "cpu",
        "SLURM_CPUS": "2",
        "SLURM_GPUS": "2",
        "SLURM_CONF": str(state / "slurm.conf"),
    }
    try:
        run(values, SLURM / "one_machine.sh", "start", state)
        yield values
    finally:
        ids = [int(p.read_text()) for p in state.glob("*.pid")]
        run(values, SLURM / "one_machine.sh", "stop", state)
        assert ids and not any(Path(f"/proc/{i}/exe").exists() for i in ids) and not state.exists()


def run(env, *command) -> str:
    done = subprocess.run(
        [str(word) for word in command], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def wait(what, log: Path, seconds: float = 900):
    """What ``what`` returns, once it is true; a test that fails shows the job's log."""
    end = time.monotonic() + seconds
    while not (found := what()):
        told = log.read_text()[-3000:] if log.exists() else "(no log)"
        assert time.monotonic() < end, told
        time.sleep(0.3)
    return found


def steps(workdir: Path) -> list[int]:
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines]


def test_every_task_sees_all_gpus_of_its_node(env):
    got = run(env, "srun", "--ntasks=2", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES")
    assert got.splitlines() == ["0,1", "0,1"]


def test_a_stopped_job_of_two_tasks_is_queued_again_and_goes_on(env, tmp_path):
    (tmp_path / "world").mkdir()  # of which this stage reads no more
    (tmp_path / "world" / "world.json").write_text("{}")
    shutil.copyfile(ROOT / "tests/golden/tokenizer.model", tmp_path / "world" / "tokenizer.model")
    workdir, log = tmp_path / "text", tmp_path / "job.log"
    job = run(
        env,
        *("sbatch", "--parsable", "--ntasks-per-node=2", "--gres=gpu:2", f"--output={log}"),
        *(SLURM / "train.sbatch", "configs/tiny.py:stage=text", workdir, "--cpu-devices=1"),
        *(f"--config.steps={STEPS}", "--config.log_every=1"),
        "--config.sources.text.batch_size=4",
    )

    def state() -> dict[str, str]:
        words = run(env, "scontrol", "show", "job", job).split()
        told = dict(word.split("=", 1) for word in words if "=" in word)
        assert told["JobState"] not in ("FAILED", "CANCELLED", "TIMEOUT"), log.read_text()[-3000:]
        return told

    wait(lambda: len(steps(workdir)) >= 3, log)
    run(env, "scancel", "--signal=TERM", job)
    wait(lambda: state()["JobState"] == "PENDING" and state()["Restarts"] == "1", log)
    saved = steps(workdir)
    assert saved == list(range(1, len(saved) + 1)) and len(saved) < STEPS
    assert {p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()} == {
        str(len(saved))
    }
    assert not (workdir / "weights").exists()

    time.sleep(3)  # within the same second SLURM takes its new credential for the revoked one
    run(env, "scontrol", "update", f"JobId={job}", "StartTime=now")  # not in two minutes
    wait(lambda: state()["JobState"] == "COMPLETED", log)
    assert steps(workdir) == list(range(1, STEPS + 1))
    manifest = json.loads((workdir / "weights" / "manifest.json").read_text())
    assert manifest["step"] == STEPS
    assert manifest["consumed"]["source/text"] == 4 * STEPS  # of both tasks, before and after
    told = log.read_text()
    assert told.count("saved and stopped; queued again") == 1
    assert "Rank 0 is connected to 1 peer" in told  # one run of two, not two runs
