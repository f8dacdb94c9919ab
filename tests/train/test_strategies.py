"""Every strategy on eight devices: one curve of losses, one program, and the bytes it promises."""

import logging
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vljax.config import VISION
from vljax.data.text import IGNORE
from vljax.models.sizes import TINY, video_llama_size
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import STRATEGIES, strategy
from vljax.store import flatten, unflatten
from vljax.train import partition
from vljax.train.legality import require_legal
from vljax.train.loop import place
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig, make_optimizer
from vljax.train.step import Problem, abstract_arguments, make_state, make_train_step

STEPS = 20
TX = make_optimizer(OptimizerConfig(peak_lr=2e-3, min_lr=1e-3, warmup_steps=0), STEPS)
PROBLEM = Problem(TINY, make_objective("vision"), VISION)  # its dropout draws the same anywhere

# By strategy: over how many devices lie the matrices that a tensor axis splits, and all others.
PROMISES = {
    "dp": (1, 1),
    "fsdp": (8, 8),
    "tp:tensor=4": (4, 1),  # 4 heads
    "fsdp_tp": (8, 4),
    "dp_tp": (2, 1),
    "fsdp_sp": (8, 8),
    "fsdp_tp:slices=2": (4, 2),
}
TENSOR = re.compile(
    r".*(query|key|value|out|fc1|fc2|gate|up|down)/kernel|llama/(tokens/embedding|head/kernel)"
)


def draw_batch(seed: int, rows: int = 8, length: int = 32) -> dict:
    """Noise for two frames; a placeholder for each query, then words; padding of many lengths."""
    rng = np.random.default_rng(seed)
    vocab, side, media = TINY.llama.vocab, TINY.vit.image, TINY.video_qformer.queries
    tokens = rng.integers(3, vocab, (rows, length)).astype(np.int32)
    tokens[:, 1 : 1 + media] = vocab
    mask = np.arange(length) < rng.integers(media + 5, length + 1, (rows, 1))
    labels = np.where(mask & (tokens < vocab), tokens, IGNORE).astype(np.int32)
    frames = rng.integers(0, 256, (rows, 2, side, side, 3), np.uint8)
    valid = np.ones((rows, 2), bool)
    return {
        "frames": frames,
        "frame_mask": valid,
        "tokens": np.where(mask, tokens, 0).astype(np.int32),
        "mask": mask,
        "labels": labels,
    }


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(0)
    flat = flatten(nn.unbox(PROBLEM.abstract()))
    return {
        n: rng.normal(n.endswith("scale"), 0.05, x.shape).astype(np.float32)
        for n, x in flat.items()
    }


@pytest.fixture(scope="module")
def reference(params) -> list[float]:
    """The losses on one device, without a placement."""
    trainable, frozen = partition.split(jax.device_put(unflatten(params)), VISION)
    rng, opt_state, losses = jax.random.key(1), TX.init(trainable), []

    @jax.jit
    def step(trainable, opt_state, batch, number):
        def loss(p):
            key = jax.random.fold_in(rng, number)
            return PROBLEM.loss(partition.merge(p, frozen), batch, key)[0]

        value, grads = jax.value_and_grad(loss)(trainable)
        updates, opt_state = TX.update(grads, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state, value

    for i in range(STEPS):
        trainable, opt_state, value = step(trainable, opt_state, draw_batch(i), i)
        losses.append(float(value))
    return losses


@pytest.mark.slow_but_for("fsdp_tp:slices=2")
@pytest.mark.parametrize("name", PROMISES)
def test_one_curve_one_program_and_the_bytes_promised(name, params, reference, caplog):
    placement = Placement(strategy(name), make_mesh(strategy(name)))
    where = flatten(placement.parameters(PROBLEM.abstract()))
    placed = {n: jax.device_put(x, where[n]) for n, x in params.items()}
    trainable, frozen = partition.split(unflatten(placed), VISION)
    state = make_state(trainable, TX, jax.random.key(1))
    state = jax.tree.map(lambda x: x if x.ndim else jax.device_put(x, placement.replicated), state)
    step, losses = make_train_step(PROBLEM, TX, placement, state), []
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        for i in range(STEPS):
            state, metrics = step(state, frozen, place(draw_batch(i), placement))
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, reference, rtol=1e-5)
    assert abs(losses[0] - losses[-1]) > 1e-3
    compiled = [m for m in caplog.messages if m.startswith("Finished XLA compilation of jit(tra")]
    assert len(compiled) == 1
    after = flatten(state.params)
    assert all(x.sharding.is_equivalent_to(where[n], x.ndim) for n, x in after.items())
    tensor, others = PROMISES[name]
    mu, nu = (flatten(optax.tree_utils.tree_get(state.opt_state, m)) for m in ("mu", "nu"))
    for arrays in (flatten(frozen), after, mu, nu):
        least, rest = promised(arrays, tensor, others)
        for device in jax.devices():
            assert least <= held(arrays, device) <= least + rest
        assert rest < 0.04 * sum(x.nbytes for x in arrays.values())


def promised(arrays: dict[str, jax.Array], tensor: int, others: int) -> tuple[float, int]:
    """Bytes a device of the matrices, and those of all vectors, which may be whole."""
    matrices, vectors = 0.0, 0
    for name, x in arrays.items():
        stacked = "/layers/" in name or "/groups/" in name
        if x.ndim - stacked < 2:
            vectors += x.nbytes
        else:
            matrices += x.nbytes / (tensor if TENSOR.fullmatch(name) else others)
    return matrices, vectors


def held(arrays: dict[str, jax.Array], device: jax.Device) -> int:
    shards = [s for x in arrays.values() for s in x.addressable_shards if s.device == device]
    return sum(s.data.nbytes for s in shards)


def test_all_strategies_are_tested():
    assert {strategy(name).base for name in PROMISES} == set(STRATEGIES)


@pytest.mark.slow_but_for("fsdp_tp")
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_step_of_7b_lowers_without_an_array(name):
    """And on eight devices a device holds of the weights and moments what was promised."""
    tx = make_optimizer(OptimizerConfig(), 10)
    problem = Problem(
        video_llama_size(),
        make_objective("vision"),
        VISION,
        jnp.bfloat16,
        "full",
        accumulate=2,
        frame_chunk=4,
    )
    require_legal(problem, strategy(name), 8, batch_sizes={"clips": 32}, lengths=(64,))
    placement = Placement(strategy(name), make_mesh(strategy(name)))
    shapes = {n: x.shape[1:] for n, x in draw_batch(0, length=64).items()}
    shapes |= {"frames": (8, 224, 224, 3), "frame_mask": (8,)}
    dtypes = {n: x.dtype for n, x in draw_batch(0).items()}
    batch = {n: jax.ShapeDtypeStruct((32, *s), dtypes[n]) for n, s in shapes.items()}
    state, frozen, batch = abstract_arguments(problem, tx, placement, batch)
    text = make_train_step(problem, tx, placement, state).lower(state, frozen, batch).as_text()
    assert "sharding" in text or name == "dp"
    leaves = jax.tree.leaves((state.params, state.opt_state, frozen))
    whole = sum(x.size * x.dtype.itemsize for x in leaves)
    own = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    share = {"dp": 1, "dp_tp": 1 / 2}.get(name, 1 / 8)
    assert share * whole <= own <= 1.02 * share * whole
