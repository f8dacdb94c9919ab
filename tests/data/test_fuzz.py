"""Mutated files: no hang, no crash, no worker left; each is decoded or quarantined for a reason."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mutations_are_the_same_for_a_seed(fuzz, tmp_path):
    data = bytes(range(256)) * 20
    for how in fuzz.MUTATIONS:
        made = [fuzz.mutate(data, how, fuzz.np.random.default_rng(s)) for s in (0, 0, 1)]
        assert made[0] == made[1] != data and made[0] != made[2]


@pytest.mark.slow
def test_mutated_files(fuzz, tmp_path):
    count = (len(fuzz.KINDS) + len(fuzz.IMAGES)) * len(fuzz.MUTATIONS)  # each with each
    told = fuzz.fuzz(tmp_path, count, seed=3, seconds=10)
    assert told["decoded"] + told["quarantined"] == count
    assert told["decoded"] > 0 and told["quarantined"] > 0
    assert told["workers_left"] == []
    rows = [json.loads(x) for x in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert len(rows) == told["quarantined"] and all(row["reason"] for row in rows)
