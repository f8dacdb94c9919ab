"""The schedule against the original's table, and which parameters decay."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.config import AUDIO, VISION
from vljax.models.sizes import TINY
from vljax.models.video_llama import abstract_parameters
from vljax.store import flatten
from vljax.train import partition
from vljax.train.optimizer import OptimizerConfig, decays, make_optimizer, schedule

GOLDEN = Path(__file__).parent.parent / "golden" / "lr_schedule.npz"
FIRST = {"peak_lr": 1e-4, "min_lr": 8e-5}
SECOND = {"peak_lr": 3e-5, "min_lr": 1e-5}
RUNS = {  # rates, warm-up, steps an epoch, epochs
    "vision_stage1": (FIRST, 2500, 2500, 5),
    "audio_stage1": (FIRST, 5000, 5000, 5),
    "vision_stage2": (SECOND, 1000, 1000, 3),
    "audio_stage2": (SECOND, 400, 1000, 3),
    "odd_warmup_longer_than_epoch": ({"peak_lr": 1e-4, "min_lr": 1e-5}, 15, 10, 3),
}


@pytest.mark.parametrize("name", RUNS)
def test_schedule(name):
    rates, warmup, epoch, epochs = RUNS[name]
    config = OptimizerConfig(**rates, warmup_steps=warmup, steps_per_epoch=epoch)
    with np.load(GOLDEN) as file:
        steps, wanted = file[f"{name}/global_step"], file[f"{name}/lr"]
    got = jax.vmap(schedule(config, epoch * epochs))(steps)
    np.testing.assert_allclose(got, wanted, rtol=2e-6)


def test_every_golden_schedule_is_compared():
    with np.load(GOLDEN) as file:
        assert {n.split("/")[0] for n in file} == set(RUNS)


def test_decay_by_names():
    params = {
        "proj": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "queries": jnp.ones((4, 3)),
        "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
        "position": {"embedding": jnp.ones((2, 3))},
        "odd": {"bias": jnp.ones((2, 3)), "bias_k": jnp.ones((2, 3))},
        "tower": {
            "layers": {"kernel": jnp.ones((5, 2, 3)), "vector": jnp.ones((5, 2))},
            "groups": {"layer_0": {"norm": {"scale": jnp.ones((5, 3))}}},
        },
        "log_scale": jnp.ones(()),
    }
    decayed = {n for n, flag in flatten(decays(params, OptimizerConfig())).items() if flag}
    assert decayed == {"proj/kernel", "queries", "position/embedding", "tower/layers/kernel"}


@pytest.mark.parametrize("trainable", [VISION, AUDIO])
def test_decay_of_a_branch(trainable):
    """As the original: matrices and tables decay, whatever is called bias or norm does not."""
    params, _ = partition.split(nn.unbox(abstract_parameters(TINY)), trainable)
    flags = flatten(decays(params, OptimizerConfig()))
    for name, flag in flags.items():
        matrix = name.endswith(("/kernel", "/embedding", "/queries"))
        assert flag == matrix, name
    assert any(flags.values())
    assert not all(flags.values())


def step(config: OptimizerConfig, params: dict, grads: dict) -> dict:
    tx = make_optimizer(config, 10)
    updates, _ = tx.update(grads, tx.init(params), params)
    return updates


def test_a_first_step_is_the_rate_and_decay():
    config = OptimizerConfig(peak_lr=0.1, min_lr=0.1, warmup_steps=0, weight_decay=0.5)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    updates = step(config, params, {"kernel": jnp.full((2, 2), 7.0), "bias": jnp.full(2, -7.0)})
    np.testing.assert_allclose(updates["kernel"], -0.1 * (1 + 0.5 * 3), rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], 0.1, rtol=1e-5)


def test_clipping_is_off_unless_asked_for():
    params = {"kernel": jnp.zeros((1, 2))}
    grads = {"kernel": jnp.array([[3.0, 4.0]])}
    rates = {"peak_lr": 0.1, "min_lr": 0.1, "warmup_steps": 0, "eps": 1.0}
    free = step(OptimizerConfig(**rates), params, grads)["kernel"]
    clipped = step(OptimizerConfig(**rates, clip=1.0), params, grads)["kernel"]
    np.testing.assert_allclose(free, [[-0.1 * 3 / 4, -0.1 * 4 / 5]], rtol=1e-5)
    np.testing.assert_allclose(clipped, [[-0.1 * 0.6 / 1.6, -0.1 * 0.8 / 1.8]], rtol=1e-5)
