"""One training step: differentiates the trainable tree alone; the frozen one is an argument."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from vljax.models.sizes import VideoLlamaSize
from vljax.nn.attention import attending
from vljax.nn.layers import constraining
from vljax.sharding.placement import Placement
from vljax.store import Tree
from vljax.train import partition
from vljax.train.objectives import Batch, Objective


class TrainState(flax.struct.PyTreeNode):
    """All that training changes. ``params`` and ``opt_state`` hold trainables only."""

    step: jax.Array
    params: Tree
    opt_state: Any
    rng: jax.Array


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is trained on what: a module of a size, its loss, and which parameters move."""

    size: VideoLlamaSize
    objective: Objective
    trainable: tuple[str, ...]
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "xla"

    def plain(self) -> "Problem":
        """The same loss with nothing made again and no fused kernel, to be counted."""
        return dataclasses.replace(self, remat="none", attention="xla")

    def abstract(self) -> Tree:
        """The abstract parameter tree, boxed with logical axes: what the loss touches, no more."""
        return jax.eval_shape(self._init, jax.random.key(0), self.objective.batch(self.size))

    def initialise(self, rng: jax.Array) -> Tree:
        """Random values of the trainable parameters; the frozen ones are never made."""
        example = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), self.objective.batch(self.size)
        )

        def trainable(rng: jax.Array, batch: Batch) -> Tree:
            return partition.split(nn.unbox(self._init(rng, batch)), self.trainable)[0]

        return jax.jit(trainable)(rng, example)

    def _init(self, rng: jax.Array, batch: Batch) -> Tree:
        module = self.objective.module(self.size, self.dtype, self.remat)
        rngs = dict.fromkeys(("params", "dropout", "noise"), rng)
        return module.init(rngs, batch, method=self.objective.method)["params"]

    def loss(self, params: Tree, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict]:
        module = self.objective.module(self.size, self.dtype, self.remat)
        dropout, noise = jax.random.split(rng)
        with attending(self.attention):
            out: Any = module.apply(
                {"params": params},
                batch,
                method=self.objective.method,
                rngs={"dropout": dropout, "noise": noise},
            )
        return out


def make_state(params: Tree, tx: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), rng)


def make_train_step(
    problem: Problem, tx: optax.GradientTransformation, placement: Placement, like: TrainState
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """A jitted ``(state, frozen, batch) -> (state, metrics)``; ``state`` is donated.

    What comes out lies where ``like`` does, so that the next step meets the same program.
    """

    def train_step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(state.rng, state.step)

        def loss(params: Tree) -> tuple[jax.Array, dict]:
            return problem.loss(partition.merge(params, frozen), batch, rng)

        with constraining(placement.constrain):
            (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"loss": value, "grad_norm": optax.global_norm(grads)}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    where = jax.tree.map(lambda x: x.sharding, like), placement.replicated
    return jax.jit(train_step, donate_argnames="state", out_shardings=where)
