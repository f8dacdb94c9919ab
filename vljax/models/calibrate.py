"""How much each input of a language model's kernels matters, from its weights alone.

Some inputs of a layer are hundreds of times larger than others, and larger for whatever is read:
random tokens tell which, so that no text is needed. SmolLM2-135M's perplexity grows by 5 % in int4
with it, and by 24 % without.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vljax.models.llama import Block
from vljax.models.sizes import LlamaSize
from vljax.nn.attention import causal_mask, rotary
from vljax.nn.layers import Dense
from vljax.store import Stored, Tree, flatten, unflatten

ROWS, LENGTH = 4, 128  # of random tokens
LAYERS = "llama/layers/"


def importances(arrays: Mapping[str, Stored], size: LlamaSize) -> dict[str, np.ndarray]:
    """Slash name of each kernel in the layers -> the mean square of its inputs [layers, in].

    ``arrays``: by slash name; of the layers one is held at a time, in float32.
    """
    tokens = np.random.default_rng(0).integers(0, size.vocab, (ROWS, LENGTH))
    x = jnp.asarray(arrays["llama/tokens/embedding"].read()[tokens], jnp.float32)
    stacked = {n.removeprefix(LAYERS): a for n, a in arrays.items() if n.startswith(LAYERS)}
    found: dict[str, list[np.ndarray]] = {}
    for i in range(size.depth):
        layer = {n: _slice(a, i) for n, a in stacked.items()}
        x, seen = _run(size, unflatten(layer), x)
        for name, squares in flatten(seen).items():
            kernel = name.removesuffix("/squares/0") + "/kernel"
            found.setdefault(LAYERS + kernel, []).append(np.asarray(squares))
    return {name: np.stack(squares) for name, squares in found.items()}


def _slice(array: Stored, layer: int) -> np.ndarray:
    box = [slice(layer, layer + 1), *(slice(0, n) for n in array.shape[1:])]
    return array.read(np.float32, box)[0]


@functools.partial(jax.jit, static_argnames="size")
def _run(size: LlamaSize, layer: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
    """x [B, L, D] -> what the layer makes of it, and the mean squares of its kernels' inputs."""

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, Dense) and context.method_name == "__call__":
            squares = jnp.square(args[0].astype(jnp.float32)).mean((0, 1))
            context.module.sow("intermediates", "squares", squares)
        return call(*args, **kwargs)

    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    turn = rotary(positions, size.width // size.heads, size.rope_base)
    mask = causal_mask(jnp.ones(x.shape[:2]))
    with nn.intercept_methods(note):
        (x, _), noted = Block(size).apply(
            {"params": layer}, x, None, mask, turn, mutable="intermediates"
        )
    return x, noted["intermediates"]
