"""The bench of the step: what it says; and that PyTorch is given the same work to do."""

import dataclasses
import math

import jax
import pytest

from vljax.bench import train as bench
from vljax.bench.train import Case, Measurement, compare, require_room, table, variants
from vljax.cli.main import main
from vljax.config import VISION

TINY = Case(size="tiny", batch=2, seq=24, frames=3)


def test_what_is_trained_is_the_vision_stages_own():
    assert bench.TRAINED == VISION


def test_variants():
    assert variants("none,full", "xla", "unrolled") == [
        {"remat": "none", "attention": "xla", "unroll": True},
        {"remat": "full", "attention": "xla", "unroll": True},
    ]
    assert len(variants("all", "all", "all")) == len(bench.REMAT) * 2 * 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--remat", "som"], "--remat: got 'som', expected all or none, "),
        (["--attention", "flash"], "--attention: got 'flash', expected all or xla, cudnn"),
        (["--size", "7b", "--layers", "40"], "--layers: got 40, expected 0 to 32"),
        (["--seq", "20"], "--seq: got 20, expected 34 to"),
        (["--rounds", "0"], "--rounds: got 0, expected 1 to"),
        (["--size", "8b"], "size=8b,llm=vicuna: no such model"),
    ],
)
def test_bad_flags_are_told_in_a_sentence(flags, told, capsys):
    assert main(["bench", "train", *flags]) == 1
    assert told in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    """On this host; what a device holds is its own business."""
    monkeypatch.setattr(bench.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 2**30}.get(name, 32))
    whole = bench.make_problem(Case(), "cpu")
    with pytest.raises(ValueError, match="take 29 GiB in float32 and this machine has 32 GiB; mea"):
        require_room(whole, Case(), "cpu")
    require_room(whole, Case(), "gpu")
    require_room(bench.make_problem(Case(layers=4), "cpu"), Case(layers=4), "cpu")


OURS = Measurement("ours", (0.4, 0.2, 0.3), 3 * 2**30, "NVIDIA H100", 10**13, 2 * 10**13, 9.89e14)
THEIRS = Measurement("PyTorch", (0.6, 0.5, 0.7), 2**30, "NVIDIA H100")


def test_the_table():
    failed = Measurement("cudnn", failed="cuDNN is not detected.")
    lines = table([OURS, failed, THEIRS]).splitlines()
    assert lines[1].split() == [
        *("ours", "300", "(200", "to", "400)", "33,333", "3.4%", "20.000", "3.0", "2.00x")
    ]
    assert lines[2].split()[0] == "PyTorch"
    assert lines[2].split()[-1] == "1.00x"
    assert lines[3] == "cudnn: cuDNN is not detected."


def test_turns_alternate_and_what_fails_is_not_tried_again(monkeypatch):
    pytest.importorskip("torch")
    turns = []

    def alone(measure, case, steps):
        turns.append((measure.__name__, case.remat))
        if case.remat == "full":
            return Measurement("full", failed="no memory")
        return dataclasses.replace(OURS if measure is bench.ours else THEIRS)

    monkeypatch.setattr(bench, "_alone", alone)
    cases = [TINY, dataclasses.replace(TINY, remat="full")]
    shown = []
    found = compare(cases, 3, 2, pytest.fail, lambda done, total: shown.append((done, total)))
    once = [("ours", "none"), ("ours", "full"), ("theirs", "none")]
    assert turns == [*once, ("ours", "none"), ("theirs", "none")]
    assert [len(m.seconds) for m in found] == [6, 0, 6]
    assert shown[-1] == (6, 6)


def test_without_torch_ours_is_measured_alone(monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "_alone", lambda measure, case, steps: OURS)
    told = []
    assert compare([TINY], 3, 1, told.append, lambda *_: None) == [OURS]
    assert told == ["torch or transformers is not installed, so ours is measured alone"]


@pytest.fixture
def fast_compiles():
    """Programs here run for milliseconds and would be optimised for seconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_a_measurement_of_ours(fast_compiles):
    measured = bench.ours(dataclasses.replace(TINY, layers=1, unroll=True), 2)
    assert len(measured.seconds) == 2
    assert measured.name == "remat none, xla attention, unrolled"
    assert measured.flops == measured.executed > 0
    assert measured.memory > 2**25
    assert measured.mfu is None


def test_a_kernel_that_is_not_here_is_told():
    measured = bench.ours(dataclasses.replace(TINY, attention="cudnn"), 1)
    assert "cuDNN" in measured.failed
    assert not measured.seconds


def test_pytorch_does_the_same_work():
    """To the last product, by its own count, with attention in parts that it can count."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from vljax.bench.hugging_face import make_step

    wide = Case(size="tiny", batch=2, seq=64, frames=8)
    torch.manual_seed(0)
    step = make_step(wide, "cpu")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = step()
    ours = bench.step_flops(bench.make_problem(wide, "cpu"), bench.make_batch(wide)).total
    assert counter.get_total_flops() == ours
    assert loss == pytest.approx(math.log(wide.model.llama.vocab), rel=0.1)
