"""One training step: differentiates the trainable tree alone; the frozen one is an argument."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from vljax.models.precision import Formats, held, require_frozen
from vljax.models.sizes import VideoLlamaSize
from vljax.nn.attention import attending
from vljax.nn.layers import constraining
from vljax.nn.stack import CPU_OPTIONS, REMAT, unrolling
from vljax.sharding.placement import Placement
from vljax.store import Tree, flatten
from vljax.train import partition
from vljax.train.objectives import Batch, Objective

Differentiated = tuple[dict[str, jax.Array], Tree]  # metrics with the loss, gradients


class TrainState(flax.struct.PyTreeNode):
    """All that training changes. ``params`` and ``opt_state`` hold trainables only."""

    step: jax.Array
    params: Tree
    opt_state: Any
    rng: jax.Array


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is trained on what: a module of a size, its loss, and which parameters move.

    Attributes:
      remat: a name in ``nn.stack.REMAT``.
      accumulate: microbatches that a step cuts its batch into, one after the other; the mean is
        over all of the batch's tokens, as without. Dropout, noise and distractors are drawn anew
        for each.
      frame_chunk: frames of each example that go through a frozen encoder at once; 0 for all.
      formats: of frozen kernels that are held in fewer bits than ``dtype`` has.
    """

    size: VideoLlamaSize
    objective: Objective
    trainable: tuple[str, ...]
    dtype: Any = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    unroll: bool = False
    accumulate: int = 1
    frame_chunk: int = 0
    formats: Formats = ()

    def __post_init__(self) -> None:
        if self.remat not in REMAT:
            raise ValueError(f"remat: got {self.remat!r}, expected one of {', '.join(REMAT)}")
        if self.accumulate < 1 or self.frame_chunk < 0:
            raise ValueError(
                f"accumulate, frame_chunk: got {self.accumulate} and {self.frame_chunk}, expected "
                "at least 1 and at least 0"
            )
        if self.accumulate > 1 and self.objective.weight is None:
            raise ValueError(
                f"accumulate: got {self.accumulate}, expected 1 for an objective whose loss is no "
                "mean over rows"
            )

    def plain(self) -> "Problem":
        """The same loss with nothing made again and no fused kernel, to be counted."""
        return dataclasses.replace(self, remat="none", attention="xla", unroll=False)

    def lay_out(self, frozen: Tree) -> Tree:
        """The frozen tree as the step takes it; what is given may be used up."""
        return partition.unstack(frozen) if self.unroll else frozen

    def abstract(self) -> Tree:
        """The abstract parameter tree, boxed with logical axes: what the loss touches, no more."""
        return jax.eval_shape(self._init, jax.random.key(0), self.objective.batch(self.size))

    def held(self) -> Tree:
        """``abstract`` as it is held: what moves in float32, the rest in ``dtype`` or quantised.

        Raises ValueError where a format is for nothing that is frozen.
        """
        boxed = self.abstract()
        moving, fixed = partition.split(nn.unbox(boxed), self.trainable)
        require_frozen(self.formats, flatten(fixed), flatten(moving))
        return held(boxed, self.formats, dict.fromkeys(flatten(fixed), self.dtype))

    def initialise(self, rng: jax.Array) -> Tree:
        """Random values of the trainable parameters; the frozen ones are never made."""
        example = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), self.objective.batch(self.size)
        )

        def trainable(rng: jax.Array, batch: Batch) -> Tree:
            return partition.split(nn.unbox(self._init(rng, batch)), self.trainable)[0]

        return jax.jit(trainable)(rng, example)

    def _init(self, rng: jax.Array, batch: Batch) -> Tree:
        module = self._module()
        rngs = dict.fromkeys(("params", "dropout", "noise"), rng)
        return module.init(rngs, batch, method=self.objective.method)["params"]

    def _module(self) -> nn.Module:
        return self.objective.module(self.size, self.dtype, self.remat, self.frame_chunk)

    def loss(self, params: Tree, batch: Batch, rng: jax.Array) -> tuple[jax.Array, dict]:
        module = self._module()
        dropout, noise = jax.random.split(rng)
        with attending(self.attention), unrolling(self.unroll):
            out: Any = module.apply(
                {"params": partition.restack(params)},
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

    What comes out lies where ``like`` (of arrays, or abstract) does, so that the next step meets
    the same program.
    """
    where = jax.tree.map(lambda x: x.sharding, like)

    def train_step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, dict]:
        rng = jax.random.fold_in(state.rng, state.step)

        def differentiated(batch: Batch, rng: jax.Array) -> Differentiated:
            def loss(params: Tree) -> tuple[jax.Array, dict]:
                return problem.loss(partition.merge(params, frozen), batch, rng)

            (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
            return metrics | {"loss": value}, jax.lax.with_sharding_constraint(grads, where.params)

        with constraining(placement.constrain):
            if problem.accumulate == 1:
                metrics, grads = differentiated(batch, rng)
            else:
                metrics, grads = accumulated(problem, differentiated, placement, batch, rng)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = metrics | {"grad_norm": optax.global_norm(grads)}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    on_cpu = placement.mesh.devices.flat[0].platform == "cpu"
    small = bool(problem.formats) or problem.dtype != jnp.float32
    return jax.jit(
        train_step,
        donate_argnames="state",
        out_shardings=(where, placement.replicated),
        compiler_options=CPU_OPTIONS if on_cpu and small else None,
    )


def accumulated(
    problem: Problem,
    differentiate: Callable[[Batch, jax.Array], Differentiated],
    placement: Placement,
    batch: Batch,
    rng: jax.Array,
) -> Differentiated:
    """``differentiate`` of a batch as means over its microbatches, one of them in memory at a time.

    Each counts as what it teaches; sums are float32.
    """
    assert problem.objective.weight is not None, "a Problem checks it"
    parts = microbatches(batch, problem.accumulate, placement)
    taught = jax.vmap(problem.objective.weight)(parts).astype(jnp.float32)
    weights = taught / jnp.maximum(taught.sum(), 1)
    keys = jax.random.split(rng, problem.accumulate)

    def add(sums: Differentiated, part: tuple[Any, Any, Batch]) -> tuple[Differentiated, None]:
        weight, key, rows = part
        made = differentiate(rows, key)
        return jax.tree.map(lambda s, x: s + weight * x.astype(jnp.float32), sums, made), None

    first = jax.tree.map(lambda x: x[0], (keys, parts))
    shapes = jax.eval_shape(lambda: differentiate(first[1], first[0]))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(add, zeros, (weights, keys, parts))[0]


def microbatches(batch: Batch, count: int, placement: Placement) -> Batch:
    """[B, ...] -> [count, B / count, ...], every count-th row together: none leaves its device."""

    def one(x: jax.Array) -> jax.Array:
        rest = x.shape[1:]
        x = x.reshape(x.shape[0] // count, count, *rest).swapaxes(0, 1)
        return placement.constrain(x, (None, "batch", *[None] * len(rest)))

    return jax.tree.map(one, batch)


def abstract_arguments(
    problem: Problem, tx: optax.GradientTransformation, placement: Placement, batch: Any
) -> tuple[TrainState, Tree, Any]:
    """(state, frozen, batch) as ShapeDtypeStructs that lie where the step wants them.

    For lowering a step without any array: ``make_train_step(..., state).lower(...)``. ``batch``
    has shapes and dtypes.
    """
    boxed = problem.held()
    where = partition.split(placement.parameters(boxed), problem.trainable)
    trainable, frozen = partition.split(nn.unbox(boxed), problem.trainable)

    def place(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.eval_shape(lambda: make_state(_zeros(trainable), tx, jax.random.key(0)))
    everywhere = jax.tree.map(lambda _: placement.replicated, state)
    moments: Any = optax.tree_map_params(
        tx, lambda _, s: s, everywhere.opt_state, where[0], is_leaf=_is_sharding
    )
    state = jax.tree.map(place, state, everywhere.replace(params=where[0], opt_state=moments))
    return (
        state,
        jax.tree.map(place, frozen, where[1]),
        jax.tree.map(place, batch, placement.batch(batch)),
    )


def _zeros(abstract: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)


def _is_sharding(node: Any) -> bool:
    return isinstance(node, jax.sharding.Sharding)
