"""The 7B set in the published layouts, where there is a place for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLACE = os.environ.get("VLJAX_FULL_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not PLACE, reason="VLJAX_FULL_SIZE names no folder with 40 GB free")
def test_a_7b_set_converts_in_little_memory_and_answers():
    script = Path(__file__).with_name("full_size.py")
    folder = Path(str(PLACE)) / "full_size"
    done = subprocess.run([sys.executable, script, folder], stdout=subprocess.PIPE, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["convert_peak_gib"] < 8
    assert report["stored_gb"] == pytest.approx(17.2, abs=0.2)  # bfloat16, every tower
    assert [line.split()[0] for line in report["chat"]] == ["load", "answer", "answer"]
