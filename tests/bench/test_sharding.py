"""Strategies on the devices that are here: which are the same, which fit, what they take."""

import dataclasses
import json

import pytest

from vljax.bench.plan import Planned
from vljax.bench.sharding import every_strategy, twins
from vljax.bench.topology import describe
from vljax.cli.main import main
from vljax.models.sizes import TINY
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig
from vljax.train.step import Problem

RUN = Planned(
    Problem(TINY, make_objective("vision"), (r"video_proj/",)), OptimizerConfig(), samples=100
)


def devices(count):
    eight = describe("cpu:8")
    return dataclasses.replace(eight, devices=eight.devices[:count])


def test_a_strategy_that_does_not_fit_has_the_nearest_that_does_beside_it():
    names = every_strategy(RUN, devices(8), 1, 32)
    assert names[:4] == ["dp", "fsdp", "tp", "tp:data=2:tensor=4"]
    assert len(names) == len(every_strategy(RUN, devices(4), 1, 32)) + 1  # tp fits on four


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {"fsdp": "dp", "tp": "dp", "dp:data=1": "dp"}),
        (2, {"dp_tp": "tp", "fsdp_tp": "tp"}),
        (8, {"fsdp:data=8:fsdp=1": "dp"}),
    ],
)
def test_strategies_that_are_another_one_here(count, expected):
    names = {1: ["dp", "fsdp", "tp", "dp:data=1", "fsdp_sp"]}.get(
        count, ["dp", "fsdp", "tp", "dp_tp", "fsdp_tp", "fsdp_sp", "fsdp:data=8:fsdp=1"]
    )
    assert twins(names, devices(count)) == expected


def test_a_run_of_the_command(tmp_path, capsys):
    out = tmp_path / "rows.json"
    argv = ["--config=configs/tiny.py:stage=text", "--strategy=dp,fsdp,tp,fsdp:data=8:fsdp=1"]
    argv += ["--batch-per-device=1", "--seq=32", "--steps=2", "--devices=8", f"--json={out}"]
    assert main(["bench", "sharding", *argv]) == 0
    dp, fsdp, tp, twin = json.loads(out.read_text())
    for row in (dp, fsdp):
        span = row["measured"]
        assert span["steps"] == 2
        assert 0 < span["least_s"] <= span["median_s"] <= span["most_s"]
        assert span["cpu_s"] > 0
        assert span["collectives_s"] > 0
        assert row["predicted_s"] == pytest.approx(
            span["median_s"], rel=0.5
        )  # of two rates, two rows
    assert dp["flops_compiled_per_device"] == dp["flops_per_device"]  # it computes nothing twice
    assert tp["measured"] is None and "4 heads" in tp["reason"]
    assert twin["same_as"] == "dp" and twin["measured"] is None
    told = capsys.readouterr().out
    assert "the same program as dp here" in told
    assert "Predictions by rates from two rows" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--batch-per-device=1,x"], "--batch-per-device: got '1,x', expected numbers with commas"),
        (["--steps=0"], "--steps: got 0, expected at least 1"),
        (["--strategy=ddp", "--devices=8"], "sharding: got 'ddp', expected one of dp, "),
        (["--devices=8", "--config=configs/tiny.py:stage=image"], "expected a stage with tokens"),
    ],
)
def test_bad_flags_are_told_in_a_sentence(flags, told, capsys):
    assert main(["bench", "sharding", *flags]) == 1
    assert told in capsys.readouterr().err
