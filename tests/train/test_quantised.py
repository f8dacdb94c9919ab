"""Training on a quantised language model and ViT: the losses, what moves, wherever arrays lie."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from vljax import store
from vljax.config import VISION
from vljax.models.precision import formats, weights_bytes
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import content_hash, flatten, unflatten
from vljax.train import partition
from vljax.train.loop import place
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig, make_optimizer
from vljax.train.start import frozen_hash, prepare, told
from vljax.train.step import Problem, make_train_step

RATES = OptimizerConfig(peak_lr=1e-2, min_lr=1e-3, warmup_steps=0)
QUANTISED = {"float": (), "int8": ("int8", "int8"), "int4": ("int4", "int8")}


@pytest.fixture(scope="module")
def problem(small):
    return Problem(small, make_objective("vision"), VISION)


@pytest.fixture(scope="module")
def folder(problem, tmp_path_factory):
    """Weights that the frozen parts begin from."""
    rng = np.random.default_rng(0)
    flat = flatten(nn.unbox(problem.abstract()))
    drawn = {n: rng.normal(n.endswith("scale"), 0.1, x.shape) for n, x in flat.items()}
    path = tmp_path_factory.mktemp("base")
    store.save(path, unflatten(drawn), {}, np.float32)
    return str(path)


def run(problem, folder, batches, name="dp", devices=1):
    """-> (frozen tree before, after, state, losses) of a step a batch."""
    rule = strategy(name)
    placement = Placement(rule, make_mesh(rule, jax.devices()[:devices]))
    tx = make_optimizer(RATES, 5)
    state, frozen, _ = prepare(problem, (folder,), (), 0, placement, tx)
    before = content_hash(frozen)
    step = make_train_step(problem, tx, placement, state)
    losses = []
    for batch in batches:
        state, metrics = step(state, frozen, place(batch, placement))
        losses.append(jax.device_get(metrics))
    return before, frozen, state, losses


@pytest.fixture(scope="module")
def trained(problem, folder, media_batch):
    batches = [media_batch(i) for i in range(2)]
    return {
        name: run(dataclasses.replace(problem, formats=formats(*asked)), folder, batches)
        for name, asked in QUANTISED.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "near"), [("int8", 0.002), ("int4", 0.02)])
def test_losses_are_near_those_of_float_weights(trained, name, near):
    plain, quantised = (
        np.array([(row["loss"], row["grad_norm"]) for row in trained[n][3]])
        for n in ("float", name)
    )
    assert np.isfinite(quantised).all()
    assert (quantised != plain).all()
    np.testing.assert_allclose(quantised[:, 0], plain[:, 0], rtol=near)
    np.testing.assert_allclose(quantised[:, 1], plain[:, 1], rtol=10 * near)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_only_what_is_trainable_moves(trained, problem, name):
    before, frozen, state, _ = trained[name]
    assert content_hash(frozen) == before
    begun = flatten(nn.unbox(problem.abstract()))
    assert flatten(state.params).keys() == {n for n in begun if n.startswith(tuple(VISION))}
    for leaf, x in flatten(state.params).items():
        assert np.isfinite(x).all(), leaf
    moved = flatten(state.opt_state)
    assert any(np.abs(np.asarray(m)).max() > 0 for m in moved.values() if m.ndim > 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_frozen_tree_takes_what_was_planned(trained, problem, name):
    quantised = dataclasses.replace(problem, formats=formats(*QUANTISED[name]))
    _, planned = partition.split(nn.unbox(quantised.held()), VISION)
    frozen = trained[name][1]
    assert {n: (x.shape, x.dtype) for n, x in flatten(frozen).items()} == {
        n: (x.shape, x.dtype) for n, x in flatten(planned).items()
    }
    assert weights_bytes(frozen) == weights_bytes(planned)
    assert weights_bytes(frozen)["llama"] < 0.5 * weights_bytes(trained["float"][1])["llama"]
    rule = strategy("dp")
    placement = Placement(rule, make_mesh(rule, jax.devices()[:1]))
    assert told(quantised, placement, make_optimizer(RATES, 5)).startswith("weights: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tp", "fsdp_tp", "fsdp_sp"])
def test_strategies_give_the_same_losses(trained, problem, folder, media_batch, name):
    """With both formats: the language model's is int4, the ViT's int8."""
    task = dataclasses.replace(problem, formats=formats(*QUANTISED["int4"]))
    _, frozen, _, rows = run(task, folder, [media_batch(i) for i in range(2)], name, 8)
    want = [row["loss"] for row in trained["int4"][3]]
    np.testing.assert_allclose([row["loss"] for row in rows], want, rtol=1e-5)
    kernel = frozen["llama"]["layers"]["mlp"]["up"]["kernel"]["int4"]
    assert kernel.addressable_shards[0].data.size < kernel.size


def test_the_hash_of_frozen_weights_knows_their_precision(problem, folder):
    arrays, _ = store.stored(folder)
    tasks = [dataclasses.replace(problem, formats=formats(*q)) for q in QUANTISED.values()]
    assert len({frozen_hash(arrays, task) for task in tasks}) == 3
