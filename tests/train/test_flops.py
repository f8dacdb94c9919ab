"""Counts against closed forms, and against what freezing must save; nothing is run."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vljax.config import VISION
from vljax.models.sizes import video_llama_size
from vljax.train import partition
from vljax.train.flops import Flops, count
from vljax.train.objectives import make_objective
from vljax.train.step import Problem

A = jax.ShapeDtypeStruct((4, 6), jnp.float32)
B = jax.ShapeDtypeStruct((6, 5), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((6, 6), jnp.float32)
PRODUCT = 2 * 4 * 6 * 6  # of A and SQUARE


def times(x, w):
    return jnp.tanh(x @ w)


def repeated(x, w, length=7, block=times):
    return jax.lax.scan(lambda x, _: (block(x, w), None), x, None, length=length)[0]


@jax.custom_vjp
def own_rule(x, w):
    return x @ w


own_rule.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, None))


def windows(image, kernel, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image, kernel, (2, 2), "VALID", dimension_numbers=numbers, feature_group_count=groups
    )


@pytest.mark.parametrize(
    ("fn", "wanted"),
    [
        (lambda x, w: x + x * w[:4], 0),
        (lambda x, w: jnp.einsum("ij,jk->ik", x, w), PRODUCT),
        (jax.vmap(lambda x, w: x @ w.T, in_axes=(0, None)), PRODUCT),
        (jax.jit(times), PRODUCT),
        (repeated, 7 * PRODUCT),
        (lambda x, w: repeated(repeated(x, w, 3), w, 2), 5 * PRODUCT),
        (lambda x, w: repeated(x, w, 3, functools.partial(repeated, length=2)), 6 * PRODUCT),
        (lambda x, w: jax.lax.fori_loop(0, 5, lambda i, x: x @ w, x), 5 * PRODUCT),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ w, x), PRODUCT),
        (own_rule, PRODUCT),
        (jax.grad(lambda x, w: own_rule(x, w).sum()), 2 * PRODUCT),
        (jax.grad(lambda x, w: times(x, w).sum()), 2 * PRODUCT),
        (jax.grad(lambda x, w: times(x, w).sum(), argnums=(0, 1)), 3 * PRODUCT),
        (jax.grad(lambda x, w: repeated(x, w).sum()), 14 * PRODUCT),
        # Made once more, for tanh to be differentiated.
        (
            jax.grad(lambda x, w: repeated(x, w, block=jax.checkpoint(times)).sum()),
            21 * PRODUCT,
        ),
    ],
)
def test_closed_forms(fn, wanted):
    counted = count(fn, A, SQUARE)
    assert (counted.total, counted.loops) == (wanted, 0)


def test_convolutions():
    image = jax.ShapeDtypeStruct((3, 9, 7, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32)
    assert count(windows, image, kernel).total == 2 * (3 * 4 * 3 * 8) * (3 * 3 * 4)
    grouped = jax.ShapeDtypeStruct((3, 3, 2, 8), jnp.float32)
    assert count(functools.partial(windows, groups=2), image, grouped).total == (
        2 * (3 * 4 * 3 * 8) * (3 * 3 * 2)
    )


def test_a_loop_of_unknown_length_is_counted_once_and_told():
    counted = count(
        lambda x, w: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x), A, SQUARE
    )
    assert (counted.total, counted.loops) == (PRODUCT, 1)


def test_what_each_device_does_is_summed():
    """A shard sees its own rows; a product that every device makes whole is made that often."""
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("data",))
    split = jax.shard_map(times, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert count(split, A, SQUARE).total == PRODUCT
    whole = jax.shard_map(times, mesh=mesh, in_specs=(P(), P()), out_specs=P())
    assert count(whole, A, SQUARE).total == 4 * PRODUCT


def test_scopes():
    def model(x, w):
        with jax.named_scope("first"):
            x = x @ w
        with jax.named_scope("second"):
            return repeated(x, w, 3)

    counted = count(model, A, SQUARE)
    assert counted.within("first") == PRODUCT
    assert counted.within("second") == 3 * PRODUCT


TOKENS, FRAMES = 512, 8


def batch_of_one(frame_tokens: bool) -> dict:
    """Abstract arrays of one clip, or of what the frozen encoder made of it."""
    batch = {name: jax.ShapeDtypeStruct((1, TOKENS), jnp.int32) for name in ("tokens", "labels")}
    batch["mask"] = jax.ShapeDtypeStruct((1, TOKENS), jnp.bool_)
    batch["frame_mask"] = jax.ShapeDtypeStruct((1, FRAMES), jnp.bool_)
    if frame_tokens:
        batch["frame_tokens"] = jax.ShapeDtypeStruct((1, FRAMES, 32, 768), jnp.bfloat16)
    else:
        batch["frames"] = jax.ShapeDtypeStruct((1, FRAMES, 224, 224, 3), jnp.uint8)
    return batch


@functools.cache
def vision_flops(remat: str = "none", everything: bool = False, features: bool = True) -> Flops:
    """Of the 7B vision step on one clip, with the trainables moving or ``everything``."""
    objective = make_objective("vision")
    objective = objective.from_features() if features else objective
    problem = Problem(video_llama_size("7b"), objective, VISION, jnp.bfloat16, remat)
    params = nn.unbox(problem.abstract())
    moving, fixed = (params, {}) if everything else partition.split(params, VISION)

    def loss(moving, fixed, batch):
        return problem.loss(partition.merge(moving, fixed), batch, jax.random.key(0))[0]

    return count(jax.value_and_grad(loss), moving, fixed, batch_of_one(features))


@functools.cache
def forward_flops(features: bool = True) -> Flops:
    objective = make_objective("vision")
    objective = objective.from_features() if features else objective
    problem = Problem(video_llama_size("7b"), objective, VISION, jnp.bfloat16)
    loss = functools.partial(problem.loss, rng=jax.random.key(0))
    return count(loss, nn.unbox(problem.abstract()), batch_of_one(features))


def test_the_frozen_llm_costs_no_weight_gradient():
    """Forward once, back through activations once: two thirds of what full training does."""
    width, mlp, depth, vocab = 4096, 11008, 32, 32000
    weights = depth * (4 * width**2 + 3 * width * mlp) + width * vocab
    attention = depth * 2 * 2 * TOKENS**2 * width  # scores and their use, each of two activations
    frozen, full = vision_flops(), vision_flops(everything=True)
    assert forward_flops().within("llama") == 2 * TOKENS * weights + attention
    assert frozen.within("llama") == 2 * (2 * TOKENS * weights) + 3 * attention
    assert full.within("llama") == 3 * (2 * TOKENS * weights) + 3 * attention
    assert frozen.total / full.total == pytest.approx(0.67, abs=0.01)


def test_nothing_upstream_of_the_first_trainable_is_differentiated():
    step, forward = vision_flops(features=False), forward_flops(features=False)
    assert step.within("frame_encoder") == forward.within("frame_encoder") > 4e12
    assert vision_flops().within("frame_encoder") == 0


@pytest.mark.parametrize(
    ("flops", "tera"),
    [
        (forward_flops, 6.906),
        (vision_flops, 13.950),
        (functools.partial(vision_flops, "full"), 19.241),
        (functools.partial(vision_flops, "dots_no_batch"), 14.019),
        (functools.partial(vision_flops, everything=True), 20.716),
        (functools.partial(vision_flops, "full", everything=True), 26.007),
        (functools.partial(forward_flops, features=False), 11.173),
        (functools.partial(vision_flops, features=False), 18.219),
    ],
)
def test_teraflops_a_clip(flops, tera):
    assert flops().total / 1e12 == pytest.approx(tera, abs=0.003)
