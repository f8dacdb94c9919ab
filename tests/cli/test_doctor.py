"""``vljax doctor`` as a process: exit codes and what is printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent.parent


def doctor(*argv: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vljax.cli.main", "doctor", *map(str, argv)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def weights(tmp_path):
    kernel = np.full((8, 4), 0.5, np.float32)
    save_file({"llama_proj.weight": kernel}, tmp_path / "proj.safetensors")
    return tmp_path


def test_a_healthy_set_exits_0(weights):
    run = doctor(weights, "--template", "vicuna")
    assert (run.returncode, run.stdout) == (0, "1 files, 1 tensors: healthy\n")


def test_a_broken_set_exits_1(weights):
    path = weights / "proj.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    run = doctor(path)
    assert run.returncode == 1
    first, last = run.stdout.splitlines()
    assert first.startswith(f"error: {path}: got {path.stat().st_size} bytes, expected ")
    assert first.endswith("[truncated]")
    assert last == "1 files, 0 tensors: 1 errors, 0 warnings"


def test_a_warning_exits_0_and_json_says_all(weights):
    config = {"hidden_size": 8, "vocab_size": 9, "_name_or_path": "vicuna-7b"}
    (weights / "config.json").write_text(json.dumps(config))
    path = (weights / "proj.safetensors").rename(weights / "llama2-proj.safetensors")
    run = doctor(weights, "--json")
    assert run.returncode == 0
    report = json.loads(run.stdout)
    assert (report["ok"], report["files"], report["tensors"]) == (True, 2, 1)
    [finding] = report["findings"]
    assert (finding["file"], finding["what"], finding["severity"]) == (
        str(path),
        "template",
        "warning",
    )


def test_wrong_calls_exit_with_one_sentence(weights):
    run = doctor(weights, "--template", "chatml")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("vljax doctor: template: got 'chatml', expected one of ")
    assert doctor().returncode == 2
