"""AdamW on the unfrozen parameters, with the original's schedule and decay rule."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import optax

from vljax.store import Tree, flatten, unflatten
from vljax.train.partition import is_stacked


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Rates per step. ``clip`` 0 is no clipping of the gradient's norm, as the original."""

    peak_lr: float = 1e-4
    min_lr: float = 8e-5
    warmup_lr: float = 1e-6
    warmup_steps: int = 2500
    steps_per_epoch: int = 2500
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.05
    no_decay: str = r"(bias|scale|bias_k|bias_v)$"  # names; vectors never decay
    clip: float = 0.0


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The original's: a warm-up by the step *within the epoch*, then a cosine from step 0.

    The rate therefore falls at once where the warm-up ends. ``steps`` is the whole run.
    """

    def rate(step: jax.Array) -> jax.Array:
        within = step % config.steps_per_epoch
        span = config.peak_lr - config.warmup_lr
        warm = config.warmup_lr + span * within / max(config.warmup_steps, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
        decayed = config.min_lr + (config.peak_lr - config.min_lr) * cosine
        return jnp.where(step < config.warmup_steps, jnp.minimum(config.peak_lr, warm), decayed)

    return rate


def decays(params: Tree, config: OptimizerConfig) -> Tree:
    """True for what weight decay applies to: matrices whose name is no bias or norm.

    A stacked vector (layers, width) is still a vector.
    """

    def one(name: str, x: jax.Array) -> bool:
        return x.ndim - is_stacked(name) >= 2 and not re.search(config.no_decay, name)

    return unflatten({n: one(n, x) for n, x in flatten(params).items()})


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW in float32, for the trainable tree alone."""
    adamw = optax.adamw(
        schedule(config, steps),
        config.b1,
        config.b2,
        config.eps,
        weight_decay=config.weight_decay,
        mask=lambda params: decays(params, config),
    )
    if not config.clip:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip), adamw)
