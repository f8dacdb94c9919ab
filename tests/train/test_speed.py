"""Rates from a clock that is set by hand, and peaks by the names that devices give themselves."""

import types

import jax
import numpy as np
import pytest

from vljax.config import VISION
from vljax.models.sizes import TINY
from vljax.train import speed
from vljax.train.objectives import make_objective
from vljax.train.report import note
from vljax.train.speed import Speed, Work, executed_flops, peak_of, step_flops
from vljax.train.step import Problem


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 2.75e14),
        ("TPU v5 lite", 1.97e14),
        ("TPU v5p", 4.59e14),
        ("TPU v6 lite", 9.2e14),
        ("NVIDIA H100 80GB HBM3", 9.89e14),
        ("NVIDIA H100 PCIe", 7.56e14),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_of(kind) == peak


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(speed.time, "monotonic", lambda: now.seconds)
    return now


def test_rates_between_two_readings(clock):
    """Two devices; what was done before the first reading counts in no rate."""
    devices = [types.SimpleNamespace(device_kind="TPU v5e")] * 2
    meter = Speed(None, devices)
    meter.done(Work(1000, 1000, 1000))
    assert meter.read() == {}
    for _ in range(3):
        meter.done(Work(clips=8, tokens=4096, flops=int(1e14)))
    clock.seconds += 2
    assert meter.read() == pytest.approx(
        {
            "clips_per_s": 12,
            "tokens_per_s_per_device": 3 * 4096 / 2 / 2,
            "mfu": 3e14 / 2 / 2 / 1.97e14,
        }
    )
    meter.done(Work(8))  # of an objective without an LLM
    clock.seconds += 1
    assert meter.read() == {"clips_per_s": 8, "mfu": 0}


@pytest.fixture(scope="module")
def problem():
    return Problem(TINY, make_objective("vision"), VISION, remat="full")


def test_the_work_of_a_step(problem, media_batch, monkeypatch):
    """Counted once a shape, for devices whose peak is known."""
    counted = []

    def count(problem, batch):
        counted.append(batch["tokens"].shape)
        return types.SimpleNamespace(total=7)

    monkeypatch.setattr(speed, "step_flops", count)
    meter = Speed(problem, [types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")])
    for rows in (8, 8, 4):
        work = meter.work(media_batch(0, rows))
        assert work == Work(rows, rows * 10, 7)
    assert counted == [(8, 10), (4, 10)]
    assert Speed(problem, jax.devices()).work(media_batch(0)) == Work(8, 80, 0)


def test_what_is_made_again_is_no_progress(problem):
    side = TINY.vit.image
    batch = {n: np.zeros((2, 12), np.int32) for n in ("tokens", "labels")}
    batch |= {"mask": np.ones((2, 12), bool), "frame_mask": np.ones((2, 3), bool)}
    batch["frames"] = np.zeros((2, 3, side, side, 3), np.uint8)
    useful, done = step_flops(problem, batch), executed_flops(problem, batch)
    assert useful.total == executed_flops(problem.plain(), batch).total
    assert 1.05 < done.total / useful.total < 1.5


def test_the_line():
    row = {"step": 1, "loss": 2.31421, "samples": 30720.0, "lr": 1e-4}
    assert note(row) == "loss 2.3142, 30,720 samples"
    row |= {"clips_per_s": 412.3, "tokens_per_s_per_device": 52736.2, "mfu": 0.4812}
    assert note(row) == (
        "loss 2.3142, 30,720 samples, 412 clips/s, 52,736 tokens/s/device, MFU 48.1%"
    )
