"""One run in several processes: the same losses, restored anywhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from vljax import store
from vljax.cli.main import main
from vljax.sharding.processes import _bind_address

FLAGS = ("--objective", "text", "--steps", "6", "--save-every", "3")
CLOSE = 1e-6  # the order in which devices sum differs with their number a process


@pytest.fixture(scope="module")
def finished(small_run, chaos, tmp_path_factory):
    """The folder of a run to its end on so many processes of so many devices."""
    folder = tmp_path_factory.mktemp("runs")

    def make(name: str, processes: int, devices: int, *flags: str) -> Path:
        workdir = folder / name
        command = [c.replace("{workdir}", str(workdir)) for c in small_run]
        command += ["--cpu-devices", str(devices), *FLAGS, *flags]
        if not (workdir / "weights").exists():
            chaos.undisturbed(command, processes, workdir)
        return workdir

    return make


def require_close(chaos, one: Path, other: Path, most: float) -> None:
    pairs = list(zip(chaos.rows(one), chaos.rows(other), strict=True))
    assert len(pairs) == 6
    for a, b in pairs:
        assert a == {n: pytest.approx(x, rel=0, abs=most) for n, x in b.items()}
    (params, facts), (others, other_facts) = (store.load(w / "weights") for w in (one, other))
    for name, x in store.flatten(params).items():
        np.testing.assert_allclose(store.flatten(others)[name], x, rtol=0, atol=most)
    assert facts["consumed"] == other_facts["consumed"]
    assert facts["frozen"] == other_facts["frozen"]
    assert facts["consumed"]["source/clips"] == 24


@pytest.mark.slow
def test_two_processes_learn_what_one_does(finished, chaos):
    require_close(chaos, finished("1x8", 1, 8), finished("2x4", 2, 4), CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (4, 2)])
def test_a_run_goes_on_in_other_processes(finished, chaos, processes, devices):
    whole = finished("2x4", 2, 4)
    name = f"{processes}x{devices} after 2x4"
    part = whole.with_name(name)
    shutil.copytree(whole / "checkpoints" / "3", part / "checkpoints" / "3")
    shutil.copy(whole / "metrics.jsonl", part)
    require_close(chaos, whole, finished(name, processes, devices), CLOSE)
    assert "3/6" not in part.with_suffix(".log").read_text()  # no step of before was made anew


@pytest.mark.slow
def test_processes_that_share_rows_load_the_same(finished, chaos):
    """Tensor parallelism across processes: each of them reads the whole batch."""
    one, two = finished("1x2", 1, 2, "--sharding", "tp"), finished("2x1", 2, 1, "--sharding", "tp")
    require_close(chaos, one, two, CLOSE)


@pytest.mark.parametrize(
    ("coordinator", "bound"),
    [
        ("127.0.0.1:99", "127.0.0.1:99"),
        ("localhost:99", "127.0.0.1:99"),
        ("[::1]:99", "[::1]:99"),
        ("10.0.0.1:99", None),
        ("node-7:99", None),
        (None, None),
    ],
)
def test_a_coordinator_on_this_machine_is_met_from_it_alone(coordinator, bound):
    assert _bind_address(coordinator) == bound


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--coordinator=x", "--processes=2", "--process=0"], "got x, expected HOST:PORT"),
        (["--coordinator=x:1", "--processes=2"], "got some of them, expected all three"),
        (["--coordinator=x:1", "--processes=2", "--process=2"], "got 2, expected 0 to 1"),
        (["--cpu-devices=0"], "--cpu-devices: got 0, expected 1 or more"),
    ],
)
def test_flags_that_do_not_fit_are_told(capsys, flags, sentence):
    assert main(["train", "--config=configs/tiny.py:stage=text", *flags]) == 1
    assert sentence in capsys.readouterr().err
