"""The loop: what it leaves behind, and that stopping and resuming changes nothing."""

import dataclasses
import json
import signal
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from vljax import store
from vljax.config import VISION
from vljax.sharding.strategy import strategy
from vljax.store import WeightsError, content_hash, flatten, unflatten
from vljax.train import partition
from vljax.train.loop import Run, comparable, fit
from vljax.train.metrics import TIMING, without_timing
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig
from vljax.train.start import frozen_hash, prepare
from vljax.train.step import Problem

STEPS = 6
RATES = OptimizerConfig(peak_lr=1e-2, min_lr=1e-3, warmup_steps=2, steps_per_epoch=STEPS)


@pytest.fixture(scope="module")
def frozen(small, tmp_path_factory):
    """Folders of frozen weights: all of them, and others of the same shapes."""
    problem = Problem(small, make_objective("vision"), VISION)
    _, tree = partition.split(nn.unbox(problem.abstract()), VISION)
    folders = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        values = {n: rng.normal(0, 0.1, x.shape) for n, x in flatten(tree).items()}
        folder = tmp_path_factory.mktemp("frozen") / "weights"
        folder.mkdir()
        store.save(folder, unflatten(values), {"run": f"seed {seed}"}, np.float32)
        folders.append(str(folder))
    return folders


@pytest.fixture(scope="module")
def make_run(small, frozen):
    def make(workdir: Path, start: tuple[str, ...] | None = None) -> Run:
        return Run(
            name="small_run",
            problem=Problem(small, make_objective("vision"), VISION),
            optimizer=RATES,
            strategy=strategy("dp"),
            steps=STEPS,
            workdir=workdir,
            start=(frozen[0],) if start is None else start,
            save_every=4,
            log_every=1,
        )

    return make


@pytest.fixture(scope="module")
def batches(media_batch):
    """Two sources in turn, stopped by Ctrl-C before step ``stop``."""

    def make(stop: int | None = None):
        def iterate(start: int):
            for step in range(start, STEPS):
                if step + 1 == stop:
                    signal.raise_signal(signal.SIGINT)  # held back until this step is saved
                yield ("clips", "images")[step % 2], media_batch(step)

        return iterate

    return make


def rows(run: Run) -> list[dict]:
    return [json.loads(x) for x in (run.workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(make_run, batches, tmp_path_factory):
    """A run to its end, and its weights' folder."""
    run = make_run(tmp_path_factory.mktemp("whole"))
    return run, fit(dataclasses.replace(run, profile=(2, 4)), batches(), {"hello": "world"})


@pytest.mark.slow
def test_records_that_could_not_be_read_are_counted(make_run, media_batch, tmp_path):
    def batches(start: int):
        for step in range(start, STEPS):
            skipped = {"missing": np.arange(8) < step} if step % 2 else {}
            yield ("clips", "images")[step % 2], media_batch(step) | skipped

    run = make_run(tmp_path)
    fit(run, batches, {})
    assert [row.get("skipped") for row in rows(run)] == [None, 1, 1, 4, 4, 9]
    _, manifest = store.load(run.workdir / "weights")
    seen = {n: x for n, x in manifest["consumed"].items() if not n.startswith("field")}
    assert seen == {"source/clips": 24, "source/images": 15, "skipped/images": 9}
    assert "field/missing" not in manifest["consumed"]


def test_a_run_and_the_same_one_interrupted(make_run, batches, whole, tmp_path):
    (whole, folder), parts = whole, make_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(parts, batches(stop=3), {})
    assert not (parts.workdir / "weights").exists()
    met = []

    def watched(start):
        met.append(start)
        return batches()(start)

    again = fit(parts, watched, {"hello": "world"})
    assert met == [3]

    assert folder == whole.workdir / "weights"
    params, manifest = store.load(folder)
    assert set(params) == {"frame_position", "video_qformer", "video_proj"}
    assert {n: manifest[n] for n in ("run", "size", "step", "seed", "hello")} == {
        "run": "small_run",
        "size": "small",
        "step": STEPS,
        "seed": 0,
        "hello": "world",
    }
    fields = ("frame_mask", "frames", "labels", "mask", "tokens")
    assert manifest["consumed"] == {
        **{f"field/{n}": 8 * STEPS for n in fields},
        "source/clips": 24,
        "source/images": 24,
    }
    log = rows(whole)
    assert [r["step"] for r in log] == [1, 2, 3, 4, 5, 6]
    told = {"step", "loss", "grad_norm", "token_accuracy", "lr", "samples"}
    assert all(set(without_timing(row)) == told for row in log)
    assert [row["samples"] for row in log] == [8, 16, 24, 32, 40, 48]
    assert log[0]["lr"] == pytest.approx(RATES.warmup_lr)
    assert (whole.workdir / "loss.png").read_bytes()[:4] == b"\x89PNG"

    resumed, facts = store.load(again)
    assert content_hash(resumed) == content_hash(params)
    assert facts == manifest
    assert [*map(without_timing, rows(parts))] == [*map(without_timing, log)]


def test_rates_stand_in_every_row_but_the_first(whole):
    """Before the first one, programs were compiled. A CPU has no peak, hence no MFU."""
    first, *later = rows(whole[0])
    assert {n for n in first if n in TIMING} == {"seconds"}
    for row in later:
        assert {n for n in row if n in TIMING} == {*TIMING} - {"mfu"}
        assert row["tokens_per_s_per_device"] / row["clips_per_s"] == pytest.approx(10 / 8)
    assert later[-1]["eta_s"] == 0


def test_tensorboard_has_the_same_rows(whole):
    run, _ = whole
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    file = min((run.workdir / "tensorboard").iterdir())
    written = {}
    data = file.read_bytes()
    while data:  # length, its checksum, an event, its checksum
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[size + 16 :]
        for value in event.summary.value:
            written.setdefault(event.step, {})[value.tag] = value.simple_value
    for row in rows(run):
        step = row.pop("step")
        assert written[step] == pytest.approx(row)


def test_a_profile_of_some_steps(whole):
    assert list((whole[0].workdir / "profile").rglob("*.xplane.pb"))


def test_a_profile_beyond_the_run_is_refused(make_run, batches, tmp_path):
    run = dataclasses.replace(make_run(tmp_path), profile=(3, 9))
    with pytest.raises(ValueError, match="--profile: got 3:9, expected FROM < TO within the 6 st"):
        fit(run, batches(), {})


def test_a_finished_run_is_not_trained_again(whole, batches):
    run, folder = whole
    first = store.load(folder)
    again = store.load(fit(run, batches(stop=STEPS), {"hello": "world"}))
    assert content_hash(first[0]) == content_hash(again[0])
    assert first[1] == again[1]


def test_other_frozen_weights_are_refused(make_run, batches, frozen, whole):
    problem = whole[0].problem
    hashes = [frozen_hash(store.stored(f)[0], problem) for f in frozen]
    sentence = f"written with frozen={hashes[0]}, got {hashes[1]}; give the same command"
    with pytest.raises(WeightsError, match=sentence):
        fit(make_run(whole[0].workdir, (frozen[1],)), batches(), {})


def test_a_run_goes_on_only_as_what_it_was(make_run, batches, whole):
    run = make_run(whole[0].workdir)
    with pytest.raises(WeightsError, match=r"config\.optimizer=None, got .*; give the same"):
        fit(run, batches(), {"config": {"optimizer": {"peak_lr": 1}, "sharding": "fsdp"}})


def test_what_a_run_goes_on_as_knows_nothing_of_where_its_folder_lies():
    config = {"workdir": "a", "start": ("a/../base", "abc"), "steps": 3, "world": {"dir": "a"}}
    moved = {"workdir": "/b", "start": ["/b/../base", "abc"], "steps": 3, "world": {"dir": "/b"}}
    assert comparable(config, Path("a")) == comparable(moved, Path("/b"))
    assert comparable(config, Path("a")) != comparable(config | {"steps": 4}, Path("a"))


def test_missing_frozen_weights_are_named(make_run, batches, frozen, tmp_path):
    with pytest.raises(WeightsError, match=r"start=\(nothing\): lacks .* frame_encoder/"):
        fit(make_run(tmp_path / "run", ()), batches(), {})
    with pytest.raises(WeightsError, match=r"nowhere: got no manifest\.json, expected a fold"):
        fit(make_run(tmp_path / "run", (frozen[0], str(tmp_path / "nowhere"))), batches(), {})
    params, _ = store.load(frozen[0])
    del params["llama"]["norm"]
    part = tmp_path / "part"
    part.mkdir()
    store.save(part, params, {})
    with pytest.raises(WeightsError, match=r"lacks 1 of \d+ arrays, llama/norm/scale among them"):
        fit(make_run(tmp_path / "run", (str(part),)), batches(), {})


def test_weights_of_another_size_are_named(make_run, batches, frozen, tmp_path):
    params, _ = store.load(frozen[0])
    params["llama"]["norm"]["scale"] = np.ones(7, np.float32)
    other = tmp_path / "other"
    other.mkdir()
    store.save(other, params, {})
    with pytest.raises(WeightsError, match=r"llama/norm/scale has shape \(7,\), expected \(32,\)"):
        fit(make_run(tmp_path / "run", (str(other),)), batches(), {})


def test_later_start_folders_win(make_run, frozen, tmp_path):
    """And what is trainable is taken from them, too."""
    from vljax.sharding.mesh import make_mesh
    from vljax.sharding.placement import Placement
    from vljax.train.optimizer import make_optimizer

    run = make_run(tmp_path, (frozen[0], frozen[1]))
    placement = Placement(run.strategy, make_mesh(run.strategy, jax.devices()[:1]))
    tx = make_optimizer(RATES, STEPS)
    state, kept, kept_hash = prepare(run.problem, run.start, (), 0, placement, tx)
    assert content_hash(kept) == content_hash(store.load(frozen[1])[0])
    assert kept_hash == frozen_hash(store.stored(frozen[1])[0], run.problem)
    assert int(state.step) == 0
    assert set(state.params) == {"frame_position", "video_qformer", "video_proj"}


def test_a_loss_that_is_not_a_number_stops_the_run(make_run, batches, tmp_path):
    run = make_run(tmp_path)
    run = dataclasses.replace(run, optimizer=dataclasses.replace(RATES, warmup_lr=float("nan")))
    with pytest.raises(FloatingPointError, match=r"small_run: loss is nan, .* at step 2; lower"):
        fit(run, batches(), {})
