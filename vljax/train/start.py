"""How a run starts: its weights from the disk to the mesh, an array at a time."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vljax import store
from vljax.models import precision
from vljax.sharding.placement import Placement
from vljax.store import Stored, Tree
from vljax.train import partition
from vljax.train.step import Problem, TrainState, abstract_arguments, make_state

Pairs = tuple[tuple[str, str], ...]


def prepare(
    problem: Problem,
    start: tuple[str, ...],
    begin_as: Pairs,
    seed: int,
    placement: Placement,
    tx: Any,
) -> tuple[TrainState, Tree, str]:
    """The initial state and the frozen tree, both placed on the mesh; and the latter's hash.

    Of the start folders only the arrays that the problem needs are read, each in its final dtype
    and of each what this process's devices hold: the host never has more than one of them.
    """
    abstract = problem.abstract()
    trainable, frozen = partition.split(nn.unbox(abstract), problem.trainable)
    given: dict[str, Stored] = {}
    for folder in start:
        given |= store.stored(folder)[0]
    given |= copies(given, begin_as)
    source = f"start={', '.join(start) or '(nothing)'}"
    wanted = store.flatten(store.pick(store.unflatten(given), frozen, source))
    initial = store.flatten(problem.initialise(jax.random.key(seed)))
    begun = store.unflatten(initial | given)
    values = store.flatten(store.pick(begun, trainable, source))
    where = store.flatten(placement.parameters(problem.held()))
    params = {n: _put(x, where[n]) for n, x in values.items()}
    fixed = store.unflatten(_put_frozen(wanted, problem, where))
    state = make_state(store.unflatten(params), tx, jax.random.key(seed + 1))
    return _replicate_rest(state, placement), fixed, frozen_hash(wanted, problem)


def told(problem: Problem, placement: Placement, tx: Any) -> str:
    """What all that stays in memory from step to step takes, in one line, and whether it fits."""
    state, frozen, _ = abstract_arguments(problem, tx, placement, {})
    trained = {"trained, with moments": [state.params, state.opt_state]}
    devices = placement.mesh.local_devices
    sharers = len(devices) if devices[0].platform == "cpu" else 1
    return precision.told(
        precision.weights_bytes(frozen | trained), precision.free_bytes(), sharers
    )


def _put_frozen(
    wanted: Mapping[str, Stored], problem: Problem, where: Mapping[str, jax.sharding.Sharding]
) -> dict[str, jax.Array]:
    """Frozen arrays onto the mesh; a kernel that has a format is quantised whole, on this host."""
    importance = precision.importances(wanted, problem.size, problem.formats)
    placed: dict[str, jax.Array] = {}
    for name, x in wanted.items():
        if precision.form_of(name, problem.formats) is None:
            placed[name] = x.put(where[name], problem.dtype)
            continue
        parts = precision.read(name, x, problem.formats, problem.dtype, importance.get(name))
        placed |= {n: jax.block_until_ready(put(part, where[n])) for n, part in parts.items()}
    return placed


def frozen_hash(arrays: Mapping[str, Stored], problem: Problem) -> str:
    """A hash of names, shapes and contents as they were written, and of the precision of use.

    It knows nothing of meshes or processes, and of what its manifest vouches for no array is read.
    """
    facts = {n: (x.shape, str(x.dtype), x.digest()) for n, x in arrays.items()}
    use = [str(np.dtype(problem.dtype)), *(f"{n}: {form}" for n, form in problem.formats)]
    whole = json.dumps([facts, *use], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def copies(given: Mapping[str, Any], begin_as: Pairs) -> dict[str, Any]:
    """The arrays under each pair's second prefix, named as under its first."""
    found: dict[str, Any] = {}
    for new, old in begin_as:
        named = {n: x for n, x in given.items() if n.startswith(old)}
        if not named:
            raise ValueError(f"begin_as: got {old!r}, expected a prefix of the start weights")
        found |= {new + name.removeprefix(old): x for name, x in named.items()}
    return found


def _put(x: Stored | jax.Array, where: jax.sharding.Sharding) -> jax.Array:
    """A trainable onto the mesh, in float32 as it was initialised or is on the disk."""
    if isinstance(x, Stored):
        return x.put(where, np.float32)
    return put(np.asarray(x), where)


def put(x: np.ndarray, where: jax.sharding.Sharding) -> jax.Array:
    """What every process has, onto a mesh of all of them."""
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def _replicate_rest(state: TrainState, placement: Placement) -> TrainState:
    """Counters and keys go to all devices; moments already lie where their parameters do."""

    def place_one(x: jax.Array) -> jax.Array:
        return x if x.ndim else put(np.asarray(x), placement.replicated)

    key = put(np.asarray(jax.random.key_data(state.rng)), placement.replicated)
    rest = jax.tree.map(place_one, state.replace(rng=None))
    return rest.replace(rng=jax.random.wrap_key_data(key))
